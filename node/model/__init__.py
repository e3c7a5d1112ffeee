"""The only room that knows transformers, peft and bitsandbytes."""
