"""Where data comes from: folder trees, Hugging Face ``datasets``, torchvision, drawn shapes."""
