"""Knowledge, reasoning and code: MMLU, GSM8K and HumanEval, each with per-item results; and text to train for them."""
