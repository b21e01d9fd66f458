"""Zero-shot grounding: attention of a frozen video MLLM over tracked proposals (arXiv 2509.15178)."""
