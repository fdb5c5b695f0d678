"""Whether a backbone computes from a file's tensors what torchvision's own network does: shapes do not tell that."""

import difflib

import torch
import torchvision

SIDE = 224  # Swin treats maps smaller than its windows in ways of its own


def feature_difference(tensors, backbone, name):
    """How far a backbone's maps are from torchvision's network of the same tensors.

    Args:
        tensors: {name: tensor} of a file; torchvision's names may stand behind a prefix.
        backbone: timm's pyramid with these values, and `name`, by which torchvision's is found.

    Returns:
        (torchvision's name, largest difference as a share of a map's largest value), or None if the file holds no
        network of torchvision of a similar name.
    """
    for similar in difflib.get_close_matches(name, torchvision.models.list_models(torchvision.models), 3, 0.3):
        with torch.random.fork_rng():
            network = torchvision.models.get_model(similar, weights=None).eval()
        state = _state_of(network, tensors)
        if state is not None:
            values = network.state_dict()  # copied into: torchvision's MNASNet refuses to load a plain dict
            for key, tensor in state.items():
                values[key].copy_(tensor)
            return similar, _largest_difference(backbone.eval(), network)
    return None


def _state_of(network, tensors):
    """The file's tensors under the network's names, its classifier's aside; None where they are not all there."""
    wanted = {key: tensor.shape for key, tensor in network.state_dict().items() if tensor.is_floating_point()}
    wanted = {key: shape for key, shape in wanted.items() if not key.startswith(("classifier.", "head.", "fc."))}
    first = next(iter(wanted))
    for prefix in {key.removesuffix(first) for key in tensors if key.endswith(first)}:
        state = {key: tensors.get(f"{prefix}{key}") for key in wanted}
        if all(tensor is not None and tensor.shape == wanted[key] for key, tensor in state.items()):
            return state
    return None


@torch.inference_mode()
def _largest_difference(backbone, network):
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    outputs = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
        for module in network.modules()
    ]
    network(pixels)
    for hook in hooks:
        hook.remove()
    return max(_distance(feature_map, outputs) for feature_map in backbone(pixels))


def _distance(feature_map, outputs):
    """From the nearest of the outputs that have the map's shape, as a share of the map's largest value."""
    distances = [(output - feature_map).abs().max() for output in outputs if output.shape == feature_map.shape]
    return float(min(distances) / feature_map.abs().max()) if distances else float("inf")
