"""`python -m services.long_term_memory.provider_check`: whether the configured embedder and LLM can be used.

`ltm up` runs it before it starts its processes, where they are not the default ones. One line on stdout says what is
wrong; the exit code is `EXIT_CANNOT_START` or, where waiting may help, `EXIT_UNAVAILABLE`. In a process of its own:
Mem0 takes 60 MB of memory.
"""

from __future__ import annotations

import os
import sys

from keepsake_client.errors import Unavailable

from services.long_term_memory.embeddings.providers import build_embedder
from services.long_term_memory.mem0_bridge import build_llm
from services.long_term_memory.provider_start import starting_provider
from services.runtime.errors import EXIT_CANNOT_START, CannotStart
from services.runtime.settings import Settings, load_settings

EXIT_UNAVAILABLE = os.EX_TEMPFAIL


def check_providers(settings: Settings) -> None:
    """Make the embedder and the LLM, and embed one text.

    Raises:
        CannotStart, Unavailable: one of them cannot be used, or not yet.
    """
    with starting_provider("LTM_LLM", settings):
        build_llm(settings)
    with starting_provider("LTM_EMBEDDER", settings):
        build_embedder(settings).embed("Where were we?", "search")


def main() -> int:
    """Check the providers of the environment; the exit code."""
    try:
        check_providers(load_settings())
    except CannotStart as error:
        print(error)
        return EXIT_CANNOT_START
    except Unavailable as error:
        print(error)
        return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
