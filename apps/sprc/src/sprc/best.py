"""The weights of the best evaluation of a run (`--save-best`), beside those of the last step."""

import json
import logging
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SCORE_FILE = "best.json"


class BestModel:
    """Keeps the model with the highest score; a run that goes on remembers the score of before.

    Args:
        folder: The Hugging Face folder to write; replaced as a whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def forget(self) -> None:
        """Begin anew: what an earlier training left here is no rival."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def offer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, score: float, step: int) -> bool:
        """Save the model if no evaluation before was as good; also say whether it was saved."""
        record = self.folder / SCORE_FILE
        if record.is_file() and json.loads(record.read_text())["score"] >= score:
            return False
        staged = self.folder.with_name(f"{self.folder.name}.staged")
        shutil.rmtree(staged, ignore_errors=True)
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        (staged / SCORE_FILE).write_text(json.dumps({"step": step, "score": score}))
        shutil.rmtree(self.folder, ignore_errors=True)
        staged.replace(self.folder)
        logger.info("step %d: best so far, score %.2f", step, score)
        return True
