"""When something happens in a training, and in which phase of it. Free of torch."""

from fabric_lite.events.event import Event
from fabric_lite.events.phases import (
    AbstractTrainingPhase,
    AbstractValidationPhase,
    Phase,
    TrainingPhase,
    ValidationPhase,
    method_names,
)

__all__ = [
    "AbstractTrainingPhase",
    "AbstractValidationPhase",
    "Event",
    "Phase",
    "TrainingPhase",
    "ValidationPhase",
    "method_names",
]
