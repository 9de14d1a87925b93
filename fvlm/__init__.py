"""F-VLM (Kuo et al., ICLR 2023): open-vocabulary detection on top of a frozen CLIP image tower."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predict.detector import load_detector as load_detector

__version__ = "0.1.0"
__all__ = ["__version__", "load_detector"]


def __getattr__(name: str) -> Any:
    """`load_detector` is imported when it is asked for: torch takes seconds, and `fvlm` itself must not."""
    if name == "load_detector":
        from .predict.detector import load_detector

        return load_detector
    raise AttributeError(f"module 'fvlm' has no attribute {name!r}")
