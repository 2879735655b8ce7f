"""The kinds of policies that can be exported: what each reads and says, and how many parameters it must have."""

from __future__ import annotations

from dataclasses import dataclass

AXES = ("linear_x", "linear_y", "angular_z")
"""In the order of a policy's outputs; one with two has the first two."""
SCALE = 2.0
"""What an output of 1 means in m/s or rad/s: labels were divided by it."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which training normalised its pictures with after dividing by 255."""
SIZE = (224, 224)
INSTRUCTION_WIDTH = 512


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. `parameters` is None where only a checkpoint knows the network.

    Opset 11 is that of the project's own files; the others need layers that came with 17.
    """

    key: str
    parameters: int | None
    image: str = "input"
    instruction: str | None = None
    output: str = "actions"
    axes: int = 2
    opset: int = 11
    any_batch: bool = True

    @property
    def inputs(self) -> list[str]:
        """The names of the model's inputs."""
        return [self.image] if self.instruction is None else [self.image, self.instruction]


KINDS = {
    kind.key: kind
    for kind in (
        Kind("clip-hybrid-small", 864_259, "images", "text_embeddings", axes=3),
        Kind("gpu-simple", 12_056_450),
        Kind("gpu-accurate", 133_323_138),
        Kind("latency-surrogate", 438_997_250),
        Kind("kosmos2-lstm", 1_703_973_122, "images", opset=17, any_batch=False),
        Kind("kosmos2-clip-hybrid", None, "images", opset=17, any_batch=False),
        Kind("clip-robovlms", None, "images", "text_embeddings", opset=17, any_batch=False),
    )
}
