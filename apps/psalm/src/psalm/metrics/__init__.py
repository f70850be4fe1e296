"""The measures of segmentation: each gathers plain numbers record by record, and adds up over batches and ranks."""
