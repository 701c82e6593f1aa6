"""DAFL and ZSKT as their authors train them; the numbers are held by recorded vectors, here is what moves when."""

import torch

from kdnb.generators.normalized import DaflGeneratorReleased, ZsktGeneratorReleased
from kdnb.samplers.authors_steps import DaflConstants, DaflStepsReleased, ZsktConstants, ZsktStepsReleased
from tests.samplers.nets import problem, rng, states, unchanged


def networks(kind):
    torch.manual_seed(0)
    given = problem()
    generator = kind(8, 5, 2, mean=given.mean, std=given.std)
    return generator, given.teacher, given.student


def test_dafl_moves_generator_and_student_and_keeps_the_teacher():
    generator, teacher, student = networks(DaflGeneratorReleased)
    kept = [states(network) for network in (generator, teacher, student)]
    losses = DaflStepsReleased(generator, teacher, student, DaflConstants()).step(torch.randn(6, 5, generator=rng()))
    assert set(losses) == {"oh", "ie", "act", "kd", "total"}
    same = [unchanged(network, before) for network, before in zip((generator, teacher, student), kept, strict=True)]
    assert same == [False, True, False]


def test_the_student_does_not_steer_dafls_generator():
    moved = []
    for seed in (1, 2):
        generator, teacher, student = networks(DaflGeneratorReleased)
        torch.nn.init.normal_(student.fc.weight, generator=rng(seed))
        DaflStepsReleased(generator, teacher, student, DaflConstants()).step(torch.randn(6, 5, generator=rng()))
        moved.append(states(generator))
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_zskt_reports_every_step_and_its_rates_fall_as_a_cosine_over_the_batches():
    steps = ZsktStepsReleased(*networks(ZsktGeneratorReleased), ZsktConstants(num_batches=2, student_steps=3))
    losses, norms = steps.batch(torch.randn(6, 5, generator=rng()))
    assert losses.shape == norms.shape == (4,) and losses[0] <= 0 and (losses[1:] >= 0).all()
    assert [optimizer.param_groups[0]["lr"] for optimizer in steps.optimizers] == [0.5e-3, 1e-3]
    steps.batch(torch.randn(6, 5, generator=rng(1)))
    assert all(optimizer.param_groups[0]["lr"] < 1e-12 for optimizer in steps.optimizers)


def test_zskts_student_steps_move_the_generators_statistics_but_not_its_weights():
    generator, teacher, student = networks(ZsktGeneratorReleased)
    kept = states(generator)
    constants = ZsktConstants(num_batches=2, student_steps=2, lr_generator=0.0)
    ZsktStepsReleased(generator, teacher, student, constants).batch(torch.randn(6, 5, generator=rng()))
    assert generator.layers[2].num_batches_tracked == 3  # one step of the generator, two of the student
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed and all("running" in name or "tracked" in name for name in changed)
