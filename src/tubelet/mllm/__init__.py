"""A video MLLM as parts: prompt layout, visual tokens, prefix cache, packed questions, attention rows."""
