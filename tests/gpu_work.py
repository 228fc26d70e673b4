"""What a process does on a GPU, or its stand-in, for test_on_a_gpu.py: python gpu_work.py WHAT [ARGUMENT].

Marks (cudaProfilerStart and cudaProfilerStop) are around the part that a test looks at.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.optim import Adam

from adamsrt.capture import capture
from adamsrt.dataloaders.images import ImageLoader, ImageSet, normalization_table
from adamsrt.models import build_model
from adamsrt.optimizers import build_optimizer
from adamsrt.training import Training, TrainingSpec

BATCH_SIZE, EXAMPLES = 32, 300  # nine whole batches and one of 12
EPOCHS = 5


@contextlib.contextmanager
def marked() -> Iterator[None]:
    torch.cuda.cudart().cudaProfilerStart()
    yield
    torch.cuda.cudart().cudaProfilerStop()


def step(name: str) -> None:
    """Take a step of an optimizer on ResNet18, after some others."""
    model = build_model("resnet18", num_classes=10, in_channels=3, image_size=32).cuda()
    if name == "torch's fused Adam":
        optimizer: torch.optim.Optimizer = Adam(model.parameters(), lr=1e-3, fused=True)
    else:
        optimizer = build_optimizer(name, model, lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(3):
        optimizer.step()
    with marked():
        optimizer.step()


def epochs(precision: str) -> None:
    """Train ResNet20 with graphs; the mark is around the steps of the last epoch but its first."""
    training = Training(
        TrainingSpec(
            *("digits", "resnet20", "adamsrt", {"lr": 1e-3}),
            epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            limit_train_examples=EXAMPLES,
            precision=precision,
            device="cuda",
            cuda_graph=True,
        )
    )

    def on_batch(done: int, of: int) -> None:
        if training.epoch == EPOCHS - 1 and done == 1:
            torch.cuda.cudart().cudaProfilerStart()
        if training.epoch == EPOCHS - 1 and done == of:
            torch.cuda.cudart().cudaProfilerStop()

    for _ in range(EPOCHS):
        training.run_epoch(on_batch)


def images(kind: str) -> None:
    """Give a batch of images that stay where they are, after another."""
    pixels = torch.zeros(4_000, 3, 32, 32, dtype=torch.uint8)
    image_set = ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    table = normalization_table((0.5,) * 3, (0.5,) * 3)
    is_training = kind == "training"
    options = {"shuffle": True, "padding": 4, "flip": True} if is_training else {}
    batches = iter(ImageLoader(image_set, table, batch_size=BATCH_SIZE, device="cuda", **options))
    next(batches)
    with marked():
        next(batches)
    print(torch.cuda.memory_allocated())


def refusals() -> None:
    """Try what cannot be captured, and say how it ended."""
    stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    x = torch.ones(4, device="cuda")
    event = torch.cuda.Event()

    def fork() -> None:
        other.wait_stream(stream)
        with torch.cuda.stream(other):
            x.mul_(2)

    def fork_and_join() -> None:
        fork()
        stream.wait_stream(other)

    def wait_for_an_event() -> None:
        event.record(stream)
        event.synchronize()

    def elsewhere(take: Callable[[], Tensor]) -> None:
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()

    tried: dict[str, Callable[[], object]] = {
        "adds": lambda: x.add_(1),
        "reads a value": lambda: x.sum().item(),
        "waits for the device": torch.cuda.synchronize,
        "waits for an event": wait_for_an_event,
        "copies from memory that may be paged out": lambda: x.copy_(torch.zeros(4)),
        "forks": fork,
        "forks and joins": fork_and_join,
        "lets another thread wait": lambda: elsewhere(lambda: torch.ones(4, device="cuda").sum().item()),
    }
    for name, take in tried.items():
        captured = capture(stream, take, make_room=False)
        print(f"{name}: {'refused' if captured is None else 'captured'}")


if __name__ == "__main__":
    {"step": step, "epochs": epochs, "images": images, "refusals": refusals}[sys.argv[1]](*sys.argv[2:])
