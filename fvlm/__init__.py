"""F-VLM (Kuo et al., ICLR 2023): open-vocabulary detection on top of a frozen CLIP image tower."""

__version__ = "0.1.0"
