"""The replay buffer keeps exactly the newest images, in order."""

from collections import deque

import pytest
import torch

from kdnb.errors import InputError
from kdnb.samplers.replay_buffer import ReplayBuffer


def numbered(*values: int):
    """1x1x1 images that carry their own number, with the number as label."""
    labels = torch.tensor(values)
    return labels.float().view(-1, 1, 1, 1), labels


def test_the_oldest_image_leaves_first():
    buffer = ReplayBuffer(3, (1, 1, 1))
    for value in (1, 2, 3, 4):
        buffer.push(*numbered(value))
    images, labels = buffer.contents()
    assert labels.tolist() == [2, 3, 4] and images.flatten().tolist() == [2, 3, 4]


def test_order_equals_a_deque_over_many_uneven_pushes():
    buffer, model = ReplayBuffer(7, (1, 1, 1)), deque(maxlen=7)
    counter = 0
    for size in (3, 5, 1, 7, 2, 20, 4, 6, 1):
        values = list(range(counter, counter + size))
        counter += size
        buffer.push(*numbered(*values))
        model.extend(values)
        assert buffer.contents()[1].tolist() == list(model) and len(buffer) == len(model)


def test_a_draw_has_no_repeats_and_only_stored_images():
    buffer = ReplayBuffer(10, (1, 1, 1))
    buffer.push(*numbered(*range(25)))
    _, labels = buffer.sample(6, torch.Generator().manual_seed(0))
    assert len(set(labels.tolist())) == 6 and set(labels.tolist()) <= set(range(15, 25))


def test_asking_for_more_than_is_stored_gives_all():
    buffer = ReplayBuffer(10, (1, 1, 1))
    buffer.push(*numbered(1, 2, 3))
    assert sorted(buffer.sample(8)[1].tolist()) == [1, 2, 3]


def test_a_restored_buffer_goes_on_exactly_where_it_was():
    a = ReplayBuffer(5, (1, 1, 1))
    a.push(*numbered(*range(8)))
    b = ReplayBuffer(5, (1, 1, 1))
    b.load_state_dict(a.state_dict())
    for buffer in (a, b):
        buffer.push(*numbered(100, 101))
    assert torch.equal(a.contents()[0], b.contents()[0])
    draws = [buffer.sample(3, torch.Generator().manual_seed(1))[1] for buffer in (a, b)]
    assert torch.equal(*draws)


def test_pushed_images_are_copies():
    buffer = ReplayBuffer(2, (1, 1, 1))
    images, labels = numbered(1)
    buffer.push(images, labels)
    images.fill_(9)
    assert buffer.contents()[0].item() == 1


def test_half_precision_storage_gives_float_back():
    buffer = ReplayBuffer(2, (1, 1, 1), dtype=torch.float16)
    buffer.push(*numbered(3))
    assert buffer.sample(1)[0].dtype == torch.float32


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_buffer_without_room_is_refused(capacity):
    with pytest.raises(InputError, match="capacity of at least 1"):
        ReplayBuffer(capacity, (1, 1, 1))


def test_images_of_another_shape_and_foreign_states_are_refused():
    buffer = ReplayBuffer(2, (1, 1, 1))
    with pytest.raises(InputError):
        buffer.push(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError):
        buffer.push(torch.zeros(2, 1, 1, 1), torch.zeros(1, dtype=torch.int64))
    other = ReplayBuffer(5, (1, 1, 1))
    other.push(*numbered(*range(5)))
    with pytest.raises(InputError, match="does not fit"):
        buffer.load_state_dict(other.state_dict())
