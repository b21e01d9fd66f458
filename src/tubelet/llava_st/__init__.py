"""LLaVA-ST (arXiv 2501.08282): coordinates are words, generated and read by a stock language model."""
