"""The peer: Ray Serve's model multiplexing as its documentation shows it, a whole transformers model for each task."""

# without the future import: inside an ingress FastAPI cannot look up annotations that are strings
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

MODELS = 3

api = FastAPI()


class Body(BaseModel):
    """A request."""

    inputs: str


@serve.deployment(max_ongoing_requests=1024)
@serve.ingress(api)
class Multiplexed:
    """One replica with room for MODELS models, loaded when they are asked for.

    Args:
        folder: has a materialized checkpoint for each model id.
        threads: of torch.
    """

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from transformers import AutoTokenizer
        from transformers.utils import logging

        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._folder = Path(folder)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(next(self._folder.iterdir()))

    @serve.multiplexed(max_num_models_per_replica=MODELS)  # type: ignore[untyped-decorator]
    async def model(self, model_id: str) -> Any:
        """The model of that task."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(self._folder / model_id).eval()

    @api.post("/peer-classify")
    async def classify(self, body: Body) -> dict[str, Any]:
        """Probabilities of a text's classes; the model is named by the header that Ray Serve routes by."""
        import torch

        model = await self.model(serve.get_multiplexed_model_id())
        inputs = self._tokenizer([body.inputs], truncation=True, return_tensors="pt")
        with torch.inference_mode():
            row = model(**inputs).logits.double().softmax(-1)[0].tolist()
        return {"scores": {model.config.id2label[number]: score for number, score in enumerate(row)}}

    @api.get("/health")
    async def health(self) -> str:
        """Answers once the replica is up."""
        return "ok"


def application(folder: str, threads: int) -> Application:
    """The peer on the checkpoints in ``folder``."""
    made: Application = Multiplexed.bind(folder, threads)  # type: ignore[attr-defined]
    return made
