"""Who judges the pairs of `edit-trl suite`, here or on another machine (L4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.evaluation.suite.cases import SuiteCase
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.evaluation.suite.evaluate_suite import CaseJudge


def of_model(arguments: SuiteArguments, client: Any) -> tuple[str, Any, int | None]:
    """What tells the model from others, its tokenizer, and how many tokens it takes; it is not loaded yet."""
    from edit_trl.models.identity import model_hash
    from edit_trl.models.loading import adapter_base, load_config, load_tokenizer, positions_of

    options = {"trust_remote_code": arguments.trust_remote_code}
    if client is not None:
        if arguments.tokenizer is None:
            raise InputError(
                "`tokenizer` is missing: a suite looks at single tokens, so it needs the tokenizer of the "
                "model at `base_urls`, as a path or Hub id"
            )
        tokenizer = load_tokenizer(arguments.tokenizer, **options)
        return client.address, tokenizer, None
    known, base = model_hash(arguments.model), adapter_base(arguments.model)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model, base, **options)
    return known, tokenizer, positions_of(load_config(arguments.model, base, **options))


def judge_of(arguments: SuiteArguments, client: Any, tokenizer: Any, cases: Sequence[SuiteCase]) -> CaseJudge:
    """Who makes the items: the model behind the endpoint, else the model, which is loaded here."""
    options = {"batch_size": arguments.batch_size, "max_new_tokens": arguments.written}
    if client is not None:
        from edit_trl.evaluation.suite.endpoint_scorer import EndpointJudge

        return EndpointJudge(client, tokenizer, cases, **options)
    from edit_trl.evaluation.suite.model_scorer import ModelJudge

    model, _ = arguments.source.load()
    return ModelJudge(model, tokenizer, cases, **options)
