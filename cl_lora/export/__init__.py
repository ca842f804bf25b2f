"""Taking a result home: a merged update and its heads as a folder that peft and timm read alone."""

from cl_lora.export.folder import Exported, export

__all__ = ["Exported", "export"]
