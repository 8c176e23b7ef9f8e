"""lm-evaluation-harness on what was delivered: tasks by name, each model in its own runtime.

transformers folders go through the harness's own HFLM; everything else (onnxruntime, llama.cpp, packed integers that
are simulated) through a Decoder, which HarnessDecoder shows to the harness as one of its models.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.architectures.models import language_tokenizer, load_tokenizer
from hfcompress.errors import UserError, needs
from hfcompress.evaluation.chat import render
from hfcompress.evaluation.generation import generate
from hfcompress.folders.end_tokens import end_tokens
from hfcompress.formats import format_of
from hfcompress.formats.runtimes.decoder import Decoder, open_decoder
from hfcompress.formats.runtimes.torch_decoder import load

try:
    import lm_eval
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    needs("lm_eval", str(error))
    raise

MAX_NEW_TOKENS = 256  # where a task does not say; HFLM's default
MARK = "@@the-last-message-ends@@"


class HarnessDecoder(TemplateLM):
    """A Decoder as the harness's model; texts are encoded, cut and scored as HFLM does it."""

    def __init__(self, decoder: Decoder, tokenizer: Any, ends: list[int]) -> None:
        """`ends`: the tokens that end an answer (see `end_tokens`)."""
        super().__init__()
        self.decoder, self.tokenizer, self.ends = decoder, tokenizer, ends

    @property
    def max_length(self) -> int:
        return self.decoder.context

    @property
    def eot_token_id(self) -> int:
        end = self.tokenizer.eos_token_id
        return self.ends[0] if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; the tokenizer decides about special ones unless told, or the text begins with one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding gives it; contexts are cut on the left."""
        from scipy.special import log_softmax
        from tqdm import tqdm

        found = []
        for key, context, continuation in tqdm(requests, desc="loglikelihood", disable=disable_tqdm):
            read = (context + continuation)[-(self.max_length + 1) :][:-1]
            self.decoder.rewind(0)
            logits = self.decoder.append(read, all_logits=True)[-len(continuation) :]
            wanted = np.array(continuation)
            said = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(wanted)), wanted]
            answer = (float(said.sum()), bool((logits.argmax(1) == wanted).all()))
            found.append(answer)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return found

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows that do not overlap."""
        found = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(parts, disable_tqdm=True)))
        return found

    def generate_until(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, cut where one of the task's stops begins.

        Raises:
            UserError: a task wants answers to be drawn.
        """
        from tqdm import tqdm

        found = []
        for text, options in tqdm([request.args for request in requests], desc="generate", disable=disable_tqdm):
            settings = normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS)
            if settings.get("do_sample"):
                raise UserError("the task draws its answers (do_sample); this runtime answers greedily only")
            end = self.tokenizer.decode([self.eot_token_id])
            stops = handle_stop_sequences(settings.get("until"), eos=end)
            room = int(settings["max_gen_toks"])
            if room >= self.max_length:
                raise UserError(f"the task asks for {room} new tokens, and the model's context is {self.max_length}")
            prompt = self.tok_encode(text)[-(self.max_length - room) :]
            found.append(self._answer(prompt, room, stops))
        return found

    def _answer(self, prompt: list[int], room: int, stops: list[str]) -> str:
        ids: list[int] = []
        for token in generate(self.decoder, prompt, max_new_tokens=room, stop=set(self.ends)):
            ids.append(token)
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            if any(stop and stop in text for stop in stops):
                break
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return str(postprocess_generated_text(text, stops, None))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The model's own template."""
        return conversation(self.tokenizer, chat_history, add_generation_prompt)


def conversation(tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Return a conversation in the model's template; without a prompt for the answer its last message goes on.

    Raises:
        UserError: see `chat.render`; the last message is not in the text.
    """
    if add_generation_prompt:
        return render(tokenizer, history, add_generation_prompt=True)
    last = str(history[-1]["content"])
    marked = [*history[:-1], {**history[-1], "content": last + MARK}]
    text = render(tokenizer, marked)
    if MARK not in text:
        raise UserError("the model's chat template leaves out the message that the answer goes on from")
    return text[: text.rindex(MARK)]


class StockModel(HFLM):
    """The harness's own model of transformers, with the chat template filled as elsewhere here."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return conversation(self.tokenizer, chat_history, add_generation_prompt)


def opened(folder: Path, threads: int) -> Any:
    """A model folder as the harness's model."""
    found = format_of(folder)
    if found.stock and found.runtime == "torch":
        return StockModel(pretrained=load(folder), tokenizer=load_tokenizer(folder), device="cpu", batch_size=1)
    tokenizer = language_tokenizer(folder)
    return HarnessDecoder(open_decoder(folder, threads), tokenizer, end_tokens(folder, tokenizer))


def task_manager(tasks: list[str], include_path: Path | None) -> TaskManager:
    """Where the harness finds these tasks; its own thousands are looked through only for those not in `include_path`.

    Raises:
        UserError: a task that is nowhere.
    """
    own = None if include_path is None else str(include_path)
    for defaults in (False, True) if own else (True,):
        manager = TaskManager(include_path=own, include_defaults=defaults)
        unknown = sorted(set(tasks) - set(manager.all_tasks))
        if not unknown:
            return manager
    raise UserError(f"--tasks {unknown[0]}: lm-evaluation-harness has no such task (lm_eval ls tasks lists them)")


def evaluate(
    folder: Path,
    tasks: list[str],
    manager: TaskManager,
    *,
    threads: int,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, dict[str, Any]]:
    """Task -> metric -> value (and `metric_stderr`), as the harness computes them.

    Args:
        limit: documents a task.

    Raises:
        UserError: a task whose data cannot be had.
    """
    try:
        found = lm_eval.simple_evaluate(
            opened(folder, threads), tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager,
            apply_chat_template=apply_chat_template, log_samples=False, bootstrap_iters=1000,
        )  # fmt: skip
    except (ConnectionError, FileNotFoundError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"--tasks {' '.join(tasks)}: the data cannot be had ({reason})") from None
    return {
        task: {name.replace(",none", ""): value for name, value in values.items() if isinstance(value, int | float)}
        for task, values in found["results"].items()
    }
