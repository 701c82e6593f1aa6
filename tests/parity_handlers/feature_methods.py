"""Methods that compare features: FitNet, VID, SemCKD, SRRL, SimKD. Adapters take the recorded weights."""

import re

import torch
from torch.nn import functional as F

from kdnb.losses import feature_mse, semckd_loss, vid_loss
from kdnb.losses.features import pool_to, pool_to_smaller
from kdnb.methods.fitnet import HintRegressor
from kdnb.methods.semckd import CrossLayerAttention
from kdnb.methods.simkd import SimKD
from kdnb.methods.srrl import connector
from kdnb.methods.vid import VIDRegressor


def _load(module, state, optional=("running_mean", "running_var", "num_batches_tracked")):
    """Recorded weights into a float64 module in training mode; running statistics may be left out, nothing else."""
    module = module.double().train()
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(key.endswith(optional) for key in missing), missing
    return module


def _leaf(golden, key):
    return golden[key].clone().requires_grad_()


def _present(golden, values):
    for key, value in values.items():
        if key in golden:
            yield key, value, golden[key]


def fitnet(golden):
    feat_s, feat_t = _leaf(golden, "feat_s"), golden["feat_t"]
    regressor = _load(HintRegressor(tuple(feat_s.shape[1:]), tuple(feat_t.shape[1:])), golden.under("w."))
    regressed = regressor(feat_s)
    loss = feature_mse(regressed, pool_to(feat_t, regressed.shape[2:]))
    values = {"regressed": regressed, "loss": loss, "grad_feat_s": torch.autograd.grad(loss, feat_s)[0]}
    yield from _present(golden, values)


def vid(golden):
    feat_s, feat_t = _leaf(golden, "feat_s"), golden["feat_t"]
    state, hyper = golden.under("w."), golden.hyper
    channels = [
        state["regressor.0.weight"].shape[1],
        state["regressor.0.weight"].shape[0],
        state["regressor.4.weight"].shape[0],
    ]
    regressor = VIDRegressor(*channels, hyper.get("init_pred_var", 5.0), hyper.get("eps", 1e-5)).double()
    _load(regressor, state, optional=("log_scale",))
    small_s, small_t = pool_to_smaller(feat_s, feat_t)
    if "log_scale_init" in golden:
        # the reference, too, fills a float32 parameter; compare the start in that precision, the loss from the recorded numbers
        yield "log_scale_init", regressor.log_scale.float(), golden["log_scale_init"].float()
        regressor.log_scale.data.copy_(golden["log_scale_init"])
    if "loss_at_init_scale" in golden:
        yield "loss_at_init_scale", vid_loss(*regressor(small_s), small_t), golden["loss_at_init_scale"]
    regressor.log_scale.data.copy_(golden["log_scale"])
    loss = vid_loss(*regressor(small_s), small_t)
    grad_feat_s, grad_log_scale = torch.autograd.grad(loss, (feat_s, regressor.log_scale))
    yield from _present(golden, {"loss": loss, "grad_feat_s": grad_feat_s, "grad_log_scale": grad_log_scale})


def _numbered(golden, prefix):
    keys = [key for key in golden.tensors if re.fullmatch(prefix + r"\d+", key)]
    return sorted(keys, key=lambda key: int(key[len(prefix) :]))


def _semckd_key(key):
    """Names of the reference -> ours: query_0 -> queries.0, key_0 -> keys.0, regressor01.regressor.K -> projections.0.1.K."""
    key = re.sub(r"^query_(\d+)", r"queries.\1", key)
    key = re.sub(r"^key_(\d+)", r"keys.\1", key)
    return re.sub(r"^regressor(\d)(\d)\.regressor", r"projections.\1.\2", key)


def semckd(golden):
    feats_s = [_leaf(golden, key) for key in _numbered(golden, "feat_s")]
    feats_t = [golden[key] for key in _numbered(golden, "feat_t")]
    channels = ([feat.shape[1] for feat in feats_s], [feat.shape[1] for feat in feats_t])
    hyper = golden.hyper
    adapter = CrossLayerAttention(*channels, len(feats_s[0]), hyper.get("factor", 4), hyper.get("soft", 1.0))
    _load(adapter, {_semckd_key(key): value for key, value in golden.under("w.").items()})
    attention = adapter.attention(feats_s, feats_t)
    loss = semckd_loss(attention, adapter.distances(feats_s, feats_t))
    values = {"attention": attention, "loss": loss}
    values |= {f"grad_feat_s{i}": grad for i, grad in enumerate(torch.autograd.grad(loss, feats_s, retain_graph=True))}
    for key in golden.tensors:
        match = re.fullmatch(r"proj_(\d+)_(\d+)", key)
        if match:
            i, j = int(match[1]), int(match[2])
            values[key], values[f"target_{i}_{j}"] = adapter.pair(i, j, feats_s[i], feats_t[j])
    yield from _present(golden, values)


def srrl(golden):
    feat_s, feat_t = _leaf(golden, "feat_s"), golden["feat_t"]
    adapter = _load(connector(feat_s.shape[1], feat_t.shape[1]), golden.under("w.transfer."))
    mapped = adapter(feat_s[:, :, None, None]).flatten(1)
    logits = F.linear(mapped, golden["cls_weight"], golden["cls_bias"])
    logits_t = (
        golden["logits_teacher"]
        if "logits_teacher" in golden
        else F.linear(feat_t, golden["cls_weight"], golden["cls_bias"])
    )
    of_features, of_logits = feature_mse(mapped, feat_t), feature_mse(logits, logits_t)
    loss = of_features + of_logits
    values = {
        "trans_feat_s": mapped,
        "pred_feat_s": logits,
        "loss_feat": of_features,
        "loss_pred": of_logits,
        "loss": loss,
    }
    yield from _present(golden, values | {"grad_feat_s": torch.autograd.grad(loss, feat_s)[0]})


def srrl_official(golden):
    feat_s, feat_t = _leaf(golden, "feat_s"), golden["feat_t"]
    state = {key.removeprefix("Connectors."): value for key, value in golden.under("w.").items()}
    connected = _load(connector(feat_s.shape[1], feat_t.shape[1]), state)(feat_s)
    pooled_s, pooled_t = connected.mean((2, 3)), feat_t.mean((2, 3))
    logits_s, logits_t = (F.linear(pooled, golden["cls_weight"], golden["cls_bias"]) for pooled in (pooled_s, pooled_t))
    of_features, of_logits = feature_mse(pooled_s, pooled_t), feature_mse(logits_s, logits_t)
    weight = golden.hyper.get("weight", 1.0)
    weighted = weight * of_logits
    loss = of_features + weighted
    values = {"connected": connected, "loss_stat": of_features, "loss_pred": of_logits, "loss": loss}
    yield from _present(golden, values | {"grad_feat_s": torch.autograd.grad(loss, feat_s)[0]})


def simkd(golden):
    feat_s, feat_t = _leaf(golden, "feat_s"), golden["feat_t"]
    small_s, small_t = pool_to_smaller(feat_s, feat_t)
    state = golden.under("w.") | {"head_weight": golden["cls_weight"], "head_bias": golden["cls_bias"]}
    state |= {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for key in state
        if key.endswith("running_mean")
    }
    method = SimKD().restore(state | {"size": torch.tensor(small_t.shape[2:])})
    method.eval()
    projected = method.project(feat_s)
    yield from _present(golden, {"eval_trans_feat_s": projected, "eval_pred_s": method.classify(projected)})
    method.train()
    projected = method.project(feat_s)
    loss = feature_mse(projected, small_t)
    values = {"trans_feat_s": projected, "trans_feat_t": small_t, "pred_s": method.classify(projected), "loss": loss}
    yield from _present(golden, values | {"grad_feat_s": torch.autograd.grad(loss, feat_s)[0]})
    yield from _present(golden, {f"after.{key}": value for key, value in method.state_dict().items()})


HANDLERS = {
    "fitnet": fitnet,
    "vid": vid,
    "semckd": semckd,
    "srrl": srrl,
    "srrl_official": srrl_official,
    "simkd": simkd,
}
