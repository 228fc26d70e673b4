"""Find the weights of a model that a normalization layer makes scale invariant, and the groups they fall into.

The model's computation is traced with torch.fx, without running it. A weight counts as scale invariant only where the
trace proves it: every use of the weight is a convolution, transposed convolution or linear layer, and every use of that
layer's output is a normalization layer. What cannot be proved goes to the rest, where the optimizers are Adam or SGD;
so a missed weight costs geometry, and never correctness.

Normalization removes two kinds of factors from its input:
- batch and instance statistics per channel remove one factor per channel, and any bias of the layer with it;
- every normalization removes one factor for the whole input, but only where the layer has no bias.
"""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# Operations that only rearrange the elements of their first argument, as modules, functions and methods.
REARRANGING_MODULES = (nn.Flatten, nn.Unflatten)
REARRANGING_NAMES = {
    "contiguous",
    "flatten",
    "movedim",
    "permute",
    "reshape",
    "squeeze",
    "transpose",
    "unsqueeze",
    "view",
}
REARRANGING_FUNCTIONS = {getattr(torch, name) for name in REARRANGING_NAMES if hasattr(torch, name)}
# Operations that read the shape of a tensor and none of its values.
SHAPE_METHODS = {"dim", "numel", "size"}
SHAPE_ATTRIBUTES = {"device", "dtype", "ndim", "shape"}


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split the parameters of a model into groups for AdamS, AdamSRT, SGDMRT and AdamG.

    Scale invariance is meant in train mode, for inputs with a batch dim, and but for the eps of the normalization
    layer. A linear layer before a BatchNorm of its width is taken to give (N, C). torch.fx, which traces the model,
    changes how modules are called in the whole process meanwhile: no other thread may call one.

    Args:
        model: called as model(x) with its required arguments only. DataParallel, DistributedDataParallel and
            torch.compile wrappers are looked through.
    Returns:
        One group {"params": [...], "channel_dims": [...]} for every distinct channel_dims, then one with the remaining
        parameters. Each parameter is in it exactly once, frozen ones too, as with torch's model.parameters(). Not
        recognized, thus in the last group: weights that are also used elsewhere (even by a residual connection),
        activations or pooling before the normalization, parametrized weights, layers with forward hooks, subclasses
        of torch's layers, and functional layers.
    Errors:
        ValueError where torch.fx cannot trace the model.
    """
    invariant = find_scale_invariant_weights(model)
    groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
    rest = []
    for parameter in model.parameters():
        if parameter in invariant:
            groups.setdefault(invariant[parameter], []).append(parameter)
        else:
            rest.append(parameter)
    found: list[dict[str, Any]] = [{"params": params, "channel_dims": list(dims)} for dims, params in groups.items()]
    if rest:
        # Spelled out, so that channel options at the top level of an optimizer do not reach these.
        found.append({"params": rest, "channel_dims": None, "channel_wise": False})
    return found


def find_scale_invariant_weights(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """Give the channel_dims of every weight that is provably scale invariant in train mode.

    Errors:
        ValueError where torch.fx cannot trace the model.
    """
    model = _unwrap(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()  # and not for each layer: a model may keep some of its BatchNorm layers in eval mode
        graph = _trace(model)
        uses: dict[nn.Parameter, list[tuple[int, ...] | None]] = {}
        for node in graph.nodes:
            for parameter, dims in _uses_of_parameters(node, model):
                uses.setdefault(parameter, []).append(dims)
    finally:
        for module, training in modes:
            module.training = training
    common = {parameter: _common_dims(dims) for parameter, dims in uses.items()}
    return {parameter: dims for parameter, dims in common.items() if dims is not None}


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # what torch.compile returns
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _trace(model: nn.Module) -> fx.Graph:
    """Trace the model as called with its required arguments only."""
    # A traced argument is never None, which would choose the branches of optional inputs.
    arguments = inspect.signature(model.forward).parameters.values()
    defaults = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return fx.Tracer().trace(model, concrete_args=defaults)
    except Exception as error:  # tracing runs the model's own code, which may fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"param_groups needs a model that torch.fx can trace, got {type(model).__name__} ({reason}); "
            "use param_groups on its submodules or give channel_dims by hand"
        ) from error


def _uses_of_parameters(node: fx.Node, model: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[int, ...] | None]]:
    """Give every parameter that the node uses, with the channel_dims this use leaves invariant (None: none)."""
    if node.op == "get_attr":
        value: Any = model
        for name in str(node.target).split("."):
            value = getattr(value, name)
        if isinstance(value, nn.Parameter):
            yield value, None
    elif node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        for parameter in layer.parameters():
            is_weight = type(layer) in LAYERS and parameter is layer.weight
            yield parameter, _dims_of_layer(node, layer, model) if is_weight else None


def _dims_of_layer(node: fx.Node, layer: nn.Module, model: nn.Module) -> tuple[int, ...] | None:
    if has_hooks(layer):
        return None
    norms = _norms_after(node, model, rearranged=False)
    return _common_dims([_dims_under_norm(layer, norm, rearranged) for norm, rearranged in norms])


def _common_dims(dims_of_uses: list[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Give the finest channel_dims that all uses leave invariant; none where there is no use."""
    if not dims_of_uses or None in dims_of_uses:
        return None
    return dims_of_uses[0] if len(set(dims_of_uses)) == 1 else ()


def _norms_after(node: fx.Node, model: nn.Module, *, rearranged: bool) -> Iterator[tuple[nn.Module | None, bool]]:
    """Give, for every use of the node's output, the normalization layer (None: anything else), and whether the
    elements have been rearranged on the way."""
    for user in node.users:
        module = model.get_submodule(str(user.target)) if user.op == "call_module" else None
        if _reads_only_shape(user):
            continue
        if module is not None and has_hooks(module):
            yield None, rearranged
        elif type(module) in NORMS:
            yield module, rearranged
        elif type(module) is nn.Identity:
            yield from _norms_after(user, model, rearranged=rearranged)
        elif type(module) in REARRANGING_MODULES or _rearranges(user, node):
            yield from _norms_after(user, model, rearranged=True)
        else:
            yield None, rearranged


def _dims_under_norm(layer: Any, norm: Any, rearranged: bool) -> tuple[int, ...] | None:
    """Give the finest channel_dims of the layer's weight whose factors the normalization layer removes."""
    if norm is None:
        return None
    if isinstance(norm, BATCH_NORMS) and not norm.training and norm.running_mean is not None:
        return None  # kept in eval mode: normalizes by fixed statistics
    if isinstance(norm, INSTANCE_NORMS) and not norm.training and norm.track_running_stats:
        return None
    if not rearranged and _normalizes_each_output_channel(layer, norm):
        return _output_dims(layer)
    return () if layer.bias is None else None


def _normalizes_each_output_channel(layer: Any, norm: Any) -> bool:
    if isinstance(layer, nn.Linear):
        # The features of a linear layer are its last dim, the channels of a normalization layer are dim 1.
        return isinstance(norm, nn.BatchNorm1d | nn.SyncBatchNorm) and bool(norm.num_features == layer.out_features)
    if isinstance(norm, nn.GroupNorm):
        return bool(norm.num_groups == norm.num_channels == layer.out_channels)
    return isinstance(norm, (*BATCH_NORMS, *INSTANCE_NORMS)) and bool(norm.num_features == layer.out_channels)


def _output_dims(layer: Any) -> tuple[int, ...]:
    """Give the dims of the weight that tell the output channels apart."""
    if not isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        return (0,)
    # The weight is (C_in, C_out / groups, ...). Where every input channel is a convolution group of its own, both dims
    # together name the output channel; otherwise dim 1 names one output channel in each convolution group.
    return (0, 1) if layer.groups == layer.in_channels > 1 else (1,)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether calling a module does more than its forward method."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _reads_only_shape(user: fx.Node) -> bool:
    if user.op == "call_function" and user.target is getattr:
        return user.args[1] in SHAPE_ATTRIBUTES
    return user.op == "call_method" and user.target in SHAPE_METHODS


def _rearranges(user: fx.Node, node: fx.Node) -> bool:
    if not user.args or user.args[0] is not node:
        return False
    if user.op == "call_method":
        return user.target in REARRANGING_NAMES
    return user.op == "call_function" and user.target in REARRANGING_FUNCTIONS
