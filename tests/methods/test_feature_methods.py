"""Methods with adapters: shapes for every pair of networks, parameter counts, what is trained, what is saved."""

import copy

import pytest
import torch
from torch.nn import functional as F

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.losses import at_loss, ce_loss, feature_mse, kd_loss, pkt_loss, rkd_losses, sp_loss, wkd_f_losses
from kdnb.methods import METHODS, build
from kdnb.methods.fitnet import HintRegressor
from kdnb.methods.semckd import CrossLayerAttention, SimilarityEmbedding
from kdnb.methods.simkd import SimKD
from kdnb.methods.srrl import connector
from kdnb.methods.vid import VIDRegressor
from kdnb.models import build as build_model

K, B, IMAGE = 10, 8, (3, 32, 32)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(B, *IMAGE, generator=GENERATOR) * 2 - 1, torch.randint(K, (B,), generator=GENERATOR)
WITH_TEACHER = [name for name, entry in METHODS.items() if entry.needs_teacher and entry.views == 1]
STAGE_BY_STAGE = ("reviewkd", "ofd", "ofd_released")  # methods that need as many stages in both networks


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build_model("resnet8w4", K), build_model("resnet8w8", K).eval()


def features(model, images=IMAGES):
    return model(images, return_features=True, preactivations=True)


@pytest.mark.parametrize("name", WITH_TEACHER)
@pytest.mark.parametrize("networks", [("resnet8w4", "vgg8q"), ("vgg8q", "resnet8w4"), ("mobilenetv2", "wrn_16_1")])
def test_unlike_networks_can_be_bound_and_trained(name, networks):
    torch.manual_seed(0)
    student, teacher = (build_model(network, K) for network in networks)
    images, labels = IMAGES[:4], LABELS[:4]
    method = build(name)
    if name in STAGE_BY_STAGE:
        with pytest.raises(InputError, match="stages|before their ReLU"):
            method.bind(student, teacher.eval(), IMAGE, K, 4)
        return
    method.bind(student, teacher.eval(), IMAGE, K, 4, num_images=4).prepare(student, teacher, Split(images, labels))
    places = {"indices": torch.arange(4)} if method.needs_indices else {}
    terms = method(features(student, images), features(teacher, images), labels, 1, **places)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(parameter.grad is not None for parameter in method.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("size_s", "size_t", "kernel", "stride"), [(8, 4, 3, 2), (4, 8, 4, 2), (8, 8, 1, 1), (7, 4, 4, 1), (6, 4, 3, 1)]
)
def test_hint_regressor_reaches_the_teachers_size(size_s, size_t, kernel, stride):
    regressor = HintRegressor((3, size_s, size_s), (5, size_t, size_t))
    assert regressor.conv.kernel_size == (kernel, kernel) and regressor.conv.stride == (stride, stride)
    assert regressor(torch.zeros(2, 3, size_s, size_s)).shape == (2, 5, size_t, size_t)


def test_fitnet_pools_the_teacher_where_the_student_is_smaller_in_another_ratio(pair):
    student, teacher = pair
    method = build("fitnet").bind(student, teacher, IMAGE, K, B)
    method.regressor = HintRegressor((8, 2, 2), (16, 8, 8)).eval()
    small = features(student)._replace(feats=[None, None, torch.ones(B, 8, 2, 2)])
    feat_t = features(teacher).feats[2][:, :, :8, :8]
    large = features(teacher)._replace(feats=[None, None, feat_t])
    expected = 100 * feature_mse(method.regressor(small.feats[2]), F.adaptive_avg_pool2d(feat_t, 2))
    assert method(small, large, LABELS, 1)["feature"].item() == pytest.approx(expected.item())


def test_a_hint_beyond_the_maps_is_refused(pair):
    with pytest.raises(InputError, match="hint must be below 4"):
        build("fitnet", hint=4).bind(*pair, IMAGE, K, B)


def test_feature_methods_add_soft_targets_on_request(pair):
    student, teacher = features(pair[0]), features(pair[1])
    terms = build("fitnet", kd_weight=1.0).bind(*pair, IMAGE, K, B)(student, teacher, LABELS, 1)
    assert terms["kd"].item() == pytest.approx(kd_loss(student.logits, teacher.logits, 4.0).item())
    assert terms["ce"].item() == pytest.approx(ce_loss(student.logits, LABELS).item())
    assert "kd" not in build("fitnet").bind(*pair, IMAGE, K, B)(student, teacher, LABELS, 1)


def test_vid_starts_at_the_given_variance_and_never_overflows():
    regressor = VIDRegressor(3, 4, 5, initial_variance=2.0)
    assert torch.allclose(regressor(torch.zeros(1, 3, 2, 2))[1], torch.full((5,), 2.0))
    regressor.log_scale.data.fill_(100.0)  # log(1 + exp(100)) is infinite in float32
    assert regressor(torch.zeros(1, 3, 2, 2))[1].tolist() == pytest.approx([100.0] * 5)


def test_vid_trains_its_variances_and_the_released_form_does_not(pair):
    trained, frozen = (build(name).bind(*pair, IMAGE, K, B) for name in ("vid", "vid_released"))
    channels = 8 + 16 + 32
    assert trained.extra_parameters() - frozen.extra_parameters() == channels
    loss = trained(features(pair[0]), features(pair[1]), LABELS, 1)["feature"]
    loss.backward()
    assert all(regressor.log_scale.grad.abs().sum() > 0 for regressor in trained.regressors)
    assert len(trained.regressors) == 3  # the stem is not tapped


def test_semckd_attention_is_a_share_of_teacher_layers_for_each_sample(pair):
    method = build("semckd").bind(*pair, IMAGE, K, B)
    student, teacher = features(pair[0]), features(pair[1])
    attention = method.adapter.attention(student.feats[1:], teacher.feats[1:])
    assert attention.shape == (B, 3, 3) and torch.allclose(attention.sum(-1), torch.ones(B, 3), atol=1e-6)


def test_semckd_gradient_reaches_the_student_through_the_attention_too(pair):
    method = build("semckd").bind(*pair, IMAGE, K, B)
    student, teacher = features(pair[0]), features(pair[1])
    (gradient,) = torch.autograd.grad(
        method.adapter.attention(student.feats[1:], teacher.feats[1:])[:, :, 0].sum(), student.feats[3]
    )
    assert gradient.abs().sum() > 0


def test_semckd_distances_from_their_definition(pair):
    adapter = build("semckd").bind(*pair, IMAGE, K, B).eval().adapter
    feats_s, feats_t = features(pair[0]).feats[1:], features(pair[1]).feats[1:]
    ours = adapter.distances(feats_s, feats_t)
    pooled = F.avg_pool2d(feats_s[0], 4)  # 32 x 32 to the 8 x 8 of the teacher's last
    assert torch.allclose(
        ours[:, 0, 2], (adapter.projections[0][2](pooled) - feats_t[2]).square().mean((1, 2, 3)), rtol=1e-5
    )
    pooled = F.avg_pool2d(feats_t[0], 4)
    assert torch.allclose(
        ours[:, 2, 0], (adapter.projections[2][0](feats_s[2]) - pooled).square().mean((1, 2, 3)), rtol=1e-5
    )


def test_semckd_leaves_its_term_out_of_a_batch_of_another_size(pair):
    method = build("semckd").bind(*pair, IMAGE, K, B)
    terms = method(features(pair[0], IMAGES[:5]), features(pair[1], IMAGES[:5]), LABELS[:5], 1)
    assert set(terms) == {"ce", "kd"}


def test_semckd_embedding_of_a_dead_sample_is_zero_and_differentiable():
    embedding = SimilarityEmbedding(4, 1)
    for parameter in embedding.parameters():
        parameter.data.zero_()
    maps = torch.ones(4, 2, 3, 3, requires_grad=True)
    out = embedding(maps)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(4, 1)) and maps.grad.isfinite().all()


def test_semckd_needs_a_batch_to_embed():
    with pytest.raises(InputError, match="batch_size must be >= 4, got 3"):
        CrossLayerAttention([4], [4], 3)


def test_srrl_compares_in_the_teachers_space_and_through_its_classifier(pair):
    student, teacher = features(pair[0]), features(pair[1])
    method = build("srrl", logit_weight=2.0).bind(*pair, IMAGE, K, B)
    terms = method(student, teacher, LABELS, 1)
    mapped = method.connector(student.pooled[:, :, None, None])[:, :, 0, 0]
    assert terms["feature"].item() == pytest.approx((mapped - teacher.pooled).square().mean().item(), rel=1e-5)
    assert terms["logit"].item() == pytest.approx(
        2 * (pair[1].head(mapped) - teacher.logits).square().mean().item(), rel=1e-5
    )
    assert set(terms) == {"ce", "kd", "feature", "logit"}


def test_official_srrl_maps_before_it_pools_and_has_no_soft_targets(pair):
    student, teacher = features(pair[0]), features(pair[1])
    method = build("srrl_official").bind(*pair, IMAGE, K, B)
    terms = method(student, teacher, LABELS, 1)
    pooled = method.connector(student.final_map).mean((2, 3))
    assert terms["feature"].item() == pytest.approx((pooled - teacher.pooled).square().mean().item(), rel=1e-5)
    assert set(terms) == {"ce", "feature", "logit"}
    sum(terms.values()).backward()
    assert pair[1].head.weight.grad is None


def test_official_srrl_connector_starts_with_the_published_deviation():
    torch.manual_seed(0)
    student, teacher = build_model("resnet8x4", K), build_model("resnet8x4", K)
    method = build("srrl_official").bind(student, teacher, IMAGE, K, B)
    assert method.connector[0].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert connector(3, 5)(torch.zeros(2, 3, 1, 1)).shape == (2, 5, 1, 1)


def test_simkd_trains_the_body_alone_and_predicts_through_the_teachers_classifier(pair):
    student, teacher = pair
    method = build("simkd").bind(student, teacher, IMAGE, K, B)
    seen = features(student)
    terms = method(seen, features(teacher), None, 1)
    terms["feature"].backward()
    assert set(terms) == {"feature"} and student.head.weight.grad is None and student.conv1.weight.grad.abs().sum() > 0
    mapped = method.eval().transfer(seen.final_map)
    assert torch.allclose(method.predict(seen), teacher.head(mapped.mean((2, 3))), atol=1e-6)


def test_simkd_prediction_changes_no_statistic_even_in_training_mode(pair):
    method = build("simkd").bind(*pair, IMAGE, K, B).train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = (method.predict(features(pair[0].eval())) for _ in range(2))
    assert torch.equal(first, second) and method.training
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_simkd_counts_projector_and_reused_classifier():
    student, teacher = build_model("resnet8x4", 100), build_model("resnet8x4", 100)
    method = build("simkd").bind(student, teacher, IMAGE, 100, B)
    assert method.extra_parameters() == 214_016 + 256 * 100 + 100
    assert sum(parameter.numel() for parameter in method.parameters()) == 214_016


@pytest.mark.parametrize("networks", [("resnet8w4", "vgg8q"), ("vgg8q", "resnet8w4")])
def test_simkd_restored_from_its_state_predicts_without_the_teacher(networks):
    torch.manual_seed(0)
    student, teacher = (build_model(network, K).eval() for network in networks)
    method = build("simkd", factor=4).bind(student, teacher, IMAGE, K, B)
    method(features(student), features(teacher), None, 1)  # moves the statistics
    alone = SimKD().restore(method.state_dict())
    assert torch.equal(alone.predict(features(student)), method.predict(features(student)))
    assert alone.factor == 4


def test_simkd_refuses_a_factor_that_leaves_no_channels(pair):
    with pytest.raises(InputError, match="factor must be at most"):
        build("simkd", factor=64).bind(*pair, IMAGE, K, B)


def test_attention_transfer_sums_over_the_stages_that_both_have(pair):
    student, teacher = features(pair[0]), features(pair[1])
    method = build("at", feature_weight=10.0).bind(*pair, IMAGE, K, B)
    losses = [at_loss(ours, theirs) for ours, theirs in zip(student.feats[1:], teacher.feats[1:], strict=True)]
    assert method(student, teacher, LABELS, 1)["feature"].item() == pytest.approx(10 * sum(losses).item())
    shorter = teacher._replace(feats=teacher.feats[:3])
    assert method(student, shorter, LABELS, 1)["feature"].item() == pytest.approx(10 * sum(losses[:2]).item())
    with pytest.raises(InputError, match="power must be at least 1"):
        build("at", power=0.5)


def test_relational_methods_compare_what_their_papers_compare(pair):
    student, teacher = features(pair[0]), features(pair[1])
    distance, angle = rkd_losses(student.pooled, teacher.pooled)
    terms = build("rkd")(student, teacher, LABELS, 1)
    assert (terms["distance"].item(), terms["angle"].item()) == pytest.approx((25 * distance.item(), 50 * angle.item()))
    assert build("pkt")(student, teacher, LABELS, 1)["feature"].item() == pytest.approx(
        30000 * pkt_loss(student.pooled, teacher.pooled).item()
    )
    assert build("sp")(student, teacher, LABELS, 1)["feature"].item() == pytest.approx(
        3000 * sp_loss(student.feats[-1], teacher.feats[-1]).item()
    )


@pytest.mark.parametrize("name", ["cat_kd", "cat_kd_normalized"])
def test_cat_kd_trains_and_predicts_without_the_bias_of_the_head(name, pair):
    student, teacher = pair
    method = build(name).bind(student, teacher, IMAGE, K, B)
    student.head.bias.data += 5 * torch.arange(K)
    seen, known = features(student), features(teacher)
    bare = seen.logits - student.head.bias
    terms = method(seen, known, LABELS, 1)
    assert terms["ce"].item() == pytest.approx(ce_loss(bare, LABELS).item(), rel=1e-5)
    torch.testing.assert_close(method.predict(seen), bare, rtol=1e-4, atol=1e-4)
    sum(terms.values()).backward()
    assert student.head.bias.grad is None and student.head.weight.grad.abs().sum() > 0
    assert teacher.head.weight.grad is None and method.extra_parameters() == 0


def test_cat_kd_that_is_averaged_predicts_by_the_averaged_head(pair):
    student, method = copy.deepcopy(torch.nn.ModuleList([pair[0], build("cat_kd").bind(*pair, IMAGE, K, B)]))
    student.head.weight.data.zero_()
    assert method.predict(features(student)).abs().max() == 0


def test_wkd_f_decays_to_the_end_of_the_training(pair):
    student, teacher = features(pair[0]), features(pair[1])

    def weights(epochs):
        method = build("wkd_f", decay_start=2).bind(*pair, IMAGE, K, B, epochs=epochs).eval()
        method.projector.load_state_dict(first.projector.state_dict())
        return [method(student, teacher, LABELS, epoch)["mean"].item() for epoch in range(1, 7)]

    first = build("wkd_f").bind(*pair, IMAGE, K, B)
    whole = weights(None)
    assert whole == [whole[0]] * 6
    assert weights(6) == pytest.approx([share * whole[0] for share in (1, 1, 0.853553, 0.5, 0.146447, 0)], abs=1e-6)


def test_wkd_f_projects_to_the_teachers_last_map(pair):
    method = build("wkd_f", mean_ratio=3.0).bind(*pair, IMAGE, K, B).eval()
    student, teacher = features(pair[0]), features(pair[1])
    mean, deviation = wkd_f_losses(method.projector(student.feats[-1]), teacher.feats[-1])
    terms = method(student, teacher, LABELS, 1)
    assert (terms["mean"] + terms["deviation"]).item() == pytest.approx(0.08 * (3 * mean + deviation).item(), rel=1e-5)


def test_wkd_f_projectors_have_the_published_sizes():
    with torch.device("meta"):
        networks = build_model("resnet8x4", 100), build_model("resnet32x4", 100)
        assert build("wkd_f").bind(*networks, IMAGE, 100, 64).extra_parameters() == 66_304
        wide = build("wkd_f_bottleneck").bind(*networks, IMAGE, 100, 64).extra_parameters()
    assert wide == 2 * (256 * 256 + 256) + 9 * 256 * 256 + 256 + 512


def test_the_bottleneck_of_wkd_f_pools_the_larger_map():
    torch.manual_seed(0)
    for student, teacher in (("resnet8w4", "vgg8q"), ("vgg8q", "resnet8w4")):
        networks = build_model(student, K), build_model(teacher, K).eval()
        method = build("wkd_f_bottleneck").bind(*networks, IMAGE, K, B)
        projected, target = method.pair(*(features(network).feats[-1] for network in networks))
        assert projected.shape == target.shape and projected.shape[2:] == (4, 4)
