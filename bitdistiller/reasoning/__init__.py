"""Knowledge, reasoning and code: MMLU, GSM8K, HumanEval."""
