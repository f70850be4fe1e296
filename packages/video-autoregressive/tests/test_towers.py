import pytest
import torch
from torch import nn
from video_autoregressive.towers import evaluating, frozen_copy, is_trained, weights_hash


def tower():
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_whether_it_is_trained():
    module = tower()
    assert is_trained(module)
    module.requires_grad_(False)
    assert not is_trained(module)
    module[1].weight.requires_grad_(True)
    assert is_trained(module)


def test_every_part_gets_its_own_mode_back():
    module = tower()
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module] == [True, False, True]
    assert module.training


def test_a_copy_has_weights_of_its_own():
    module = tower().bfloat16()
    twin = frozen_copy(module)
    assert weights_hash(twin) == weights_hash(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert weights_hash(twin) != weights_hash(module)
    assert twin[0].weight.dtype == torch.bfloat16
    assert not is_trained(twin)
    assert is_trained(module)
    assert not any(part.training for part in twin.modules())


def test_a_copy_of_a_tower_that_has_run_gets_its_hooks_anew():
    """transformers installs hooks at the first forward that is asked for hidden states, and marks the tower."""
    module = tower()
    module._output_capturing_hooks_installed = True
    assert not hasattr(frozen_copy(module), "_output_capturing_hooks_installed")
    assert module._output_capturing_hooks_installed


def test_a_copy_has_no_hooks_and_the_original_keeps_its_own():
    """Trap: a hook bound to the model around the tower would be copied with the whole model."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = tower()
            self.seen = []
            self.tower.register_forward_hook(self.keep)
            self.tower[0].register_forward_pre_hook(self.keep)

        def keep(self, *_):
            self.seen.append(1)

        def __deepcopy__(self, memo):
            raise AssertionError("the whole model was copied")

    model = Model()
    twin = frozen_copy(model.tower)
    frames = torch.randn(2, 3, 4, 4)
    twin(frames)
    assert model.seen == []
    model.tower(frames)
    assert model.seen == [1, 1]


def test_partitioned_weights_are_refused():
    """Trap: a copy taken after ZeRO-3 has partitioned the weights is empty."""
    module = tower()
    module[1].weight.data = torch.empty(0)
    for look in (frozen_copy, weights_hash):
        with pytest.raises(ValueError, match=r"weight '1.weight' has shape \(0,\).*before the engine wraps"):
            look(module)
    with pytest.raises(ValueError, match="meta device"):
        frozen_copy(tower().to("meta"))


def test_the_hash_sees_names_types_shapes_and_bits():
    module = nn.Linear(2, 2)
    nn.init.zeros_(module.weight)
    reference = weights_hash(module)
    assert weights_hash(frozen_copy(module)) == reference
    assert weights_hash(frozen_copy(module).bfloat16()) != reference
    assert weights_hash(nn.Sequential(frozen_copy(module))) != reference
    changed = frozen_copy(module)
    with torch.no_grad():
        changed.bias[1] += 1e-7
    assert weights_hash(changed) != reference
