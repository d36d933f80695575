"""Part II: language models, from a tokenizer to an assistant."""
