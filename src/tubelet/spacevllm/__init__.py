"""SpaceVLLM (arXiv 2503.13983): per-frame query tokens, a query-guided space decoder, times as text."""
