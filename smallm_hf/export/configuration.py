"""What a model can be written as."""

from typing import Literal

Target = Literal["native", "gguf", "onnx"]
# The names of llama.cpp's own converter, whose option is called --outtype too.
OutType = Literal["f32", "f16", "bf16", "q8_0"]
