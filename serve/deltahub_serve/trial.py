"""A version is asked once before it takes another one's place."""

from __future__ import annotations

from deltahub import DeltahubError
from deltahub.errors import MismatchError
from deltahub_serve.engine import Closed, Engine
from deltahub_serve.scheduler import Overloaded
from deltahub_serve.shelf import Loaded

_LONGEST = 2.0


def try_out(engine: Engine, loaded: Loaded) -> None:
    """One pass of ``loaded``, among those of everybody else; what waits for it longer than 2 seconds counts as good.

    Raises:
        DeltahubError: it has no answer, such as one whose values overflow.
    """
    model = loaded.model
    encoded = model.prepare(["a"], ["a"] if model.delta.manifest.inputs.get("pair") is True else None)
    try:
        engine.submit(model, loaded.version, encoded)[0].result(_LONGEST)
    except (Overloaded, Closed, TimeoutError):
        return
    except DeltahubError:
        raise
    except Exception as error:  # whatever torch makes of it
        raise MismatchError(f"{loaded.reference} cannot answer ({str(error)[:160]})") from error
