"""Parameters of `evaluate`: tasks, shots, generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal

from kedro_rerun.errors import without_secrets
from pydantic import model_validator
from pydantic_core import ArgsKwargs

from mm1_pipeline.config._base import (
    MOST,
    NULL_REMOVES,
    Count,
    Name,
    Number,
    Resamples,
    Seconds,
    Seed,
    Shots,
    Tries,
    bounds,
    input_path,
    only,
    operational,
    parameters,
    with_fields,
)
from mm1_pipeline.config.shard import SubImageConfig
from mm1_pipeline.config.task_files import complete_task
from mm1_pipeline.config.task_formats import SubmissionFormat, TaskFormat
from mm1_pipeline.config.text_tasks import TextTaskConfig


class Metric(StrEnum):
    """How answers are scored."""

    CIDER = "cider"
    """Consensus of n-grams with the references, times 100."""
    VQA_ACCURACY = "vqa_accuracy"
    """Agreement with ten human answers, times 100, by the rules of VQAv2 and OK-VQA: both sides
    are normalised, but where all people wrote the same, compared as they stand."""
    TEXTVQA_ACCURACY = "textvqa_accuracy"
    """As `vqa_accuracy`, by TextVQA's rules: both sides are always normalised, in another way."""
    VIZWIZ_ACCURACY = "vizwiz_accuracy"
    """As `vqa_accuracy`, by VizWiz's rules: only the answer is normalised."""
    EXACT_MATCH = "exact_match"
    """The same text as a reference but for case, outer spaces and final full stops."""
    ANLS = "anls"
    """1 - normalised edit distance to the nearest reference, 0 below a half, times 100."""
    RELAXED_ACCURACY = "relaxed_accuracy"
    """Numbers within 5 % of the reference, other texts equal but for case."""
    CHOICE = "choice"
    """The right option's letter; questions without options by their text or number."""
    CIRCULAR = "circular"
    """Right under every rotation of the options."""
    POPE_F1 = "pope_f1"
    """F1 of `yes`, mean of the three splits; accuracy and yes-ratio beside it."""
    MME_SCORE = "mme_score"
    """Sum over categories of accuracy by question and by image, each times 100."""
    MATHVISTA = "mathvista"
    """Extracted answer equal to the reference at its precision."""
    JUDGE_RATIO = "judge_ratio"
    """A judge's marks for the answers over its marks for the reference answers, times 100."""
    JUDGE_GRADE = "judge_grade"
    """A judge's grade of 0..1, times 100."""

    @property
    def needs_judge(self) -> bool:
        """Whether a language model decides the score."""
        return self in (Metric.JUDGE_RATIO, Metric.JUDGE_GRADE)

    @property
    def has_ten_answers(self) -> bool:
        """Whether ten people answered each question."""
        return self in (Metric.VQA_ACCURACY, Metric.TEXTVQA_ACCURACY, Metric.VIZWIZ_ACCURACY)

    @property
    def has_letters(self) -> bool:
        """Whether answers are letters of options."""
        return self in (Metric.CHOICE, Metric.CIRCULAR)

    @property
    def reads_whole_answers(self) -> bool:
        """Whether the answer is found in all that a model writes, explanations included."""
        return self.has_letters or self.needs_judge or self == Metric.MATHVISTA


@parameters
class MixedResolution:
    """High and low resolution images in one few-shot prompt.

    Source: MM1, mixed-resolution few-shot (only the last N shots and the query stay high).
    """

    sub_images: SubImageConfig | None = None
    """Sub-images of an image at high resolution; at low resolution it is the overview alone. None
    takes those that the model was trained with: the overview where training had no others."""
    num_high_shots: Shots = 3
    """Last shots that stay high; our choice: 8 shots then take 5 x 144 + 4 x 720 = 3,600."""
    max_high_images: Count | None = None
    """Images of one example up to which it stays high; one with more of them, such as a question of
    MMMU on seven pictures, shows the overview of each. Our choice; None sets no limit."""
    max_positions: Count = 4_096
    """Positions of prompt and answer that the model was trained on."""

    def __post_init__(self) -> None:
        if self.sub_images is not None and self.sub_images.grid < 2:
            raise ValueError(
                f"sub_images.grid: found {self.sub_images.grid}, expected 2 or more; one "
                "sub-image is low resolution."
            )


class AnswerForm(StrEnum):
    """What is scored, and handed in, of what a model wrote."""

    AS_WRITTEN = "as_written"
    """The text before the first stop string, without outer spaces."""
    EVALAI = "evalai"
    """That text as EvalAI's answer processor rewrites it: lower case, no articles, digits. Source:
    LLaVA-1.5, which hands in VQAv2 and VizWiz so."""


class CaptionWords(StrEnum):
    """Which tokenizer gives the words that CIDEr counts."""

    REGEX = "regex"
    """Ours, without Java."""
    STANFORD = "stanford"
    """Stanford's, as published numbers have it; needs Java."""
    AUTO = "auto"
    """Stanford's where Java is, else ours; evaluation.json says which."""


class ShotDraw(StrEnum):
    """Whether the prompts of a task show the same examples."""

    PER_TASK = "per_task"
    """All queries have the first shots of one order, without those that are barred; more shots
    continue fewer. Their beginning is then read once for all: several times faster."""
    PER_QUERY = "per_query"
    """Each query has shots of its own: the score does not hang on one choice of shots."""


class Precision(StrEnum):
    """Numbers that generation computes with."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """Half the memory and several times faster on a GPU; answers may differ a little."""


@parameters
class TaskConfig:
    """One evaluation task: data, prompt, metric.

    `task` names a task file whose values hold wherever this entry says nothing: then only the
    paths are left to give. A task reads either an ingested `source` or the `files` of an official
    `format`.

    Source: MM1, Evaluation (prompts, stop rules and shots are unconfirmed).
    """

    metric: Metric
    prompt: str
    """Template of one example; `{image}`, `{question}` and `{options}` are filled in."""
    open_prompt: str = ""
    """Template of questions without options, where a task has both kinds."""
    task: str | None = None
    """A task file of the package by name, or the path of one's own."""
    title: str = ""
    """How the benchmark is called."""
    paper: str | None = None
    """Column of the paper's table that the task belongs to."""
    paper_table: Literal["pretrain", "sft"] | None = None
    """Which of the paper's tables has the column."""
    unconfirmed: tuple[str, ...] = ()
    """What the project only believes to be the paper's way."""
    source: str | None = None
    """Name of the ingested evaluation source."""
    format: TaskFormat | None = None
    """How the official files are written."""
    files: dict[str, str] | None = input_path(default=None)
    """Files and folders by role, for instance `questions`, `annotations`, `images`."""
    subset: str = ""
    """Part of the files that is asked, where the format has parts."""
    image_name: str = ""
    """File name of an image where the format gives a number: `COCO_val2014_{id:012d}.jpg`."""
    shot_files: dict[str, str] | None = input_path(default=None)
    """Files that shots come from, as `files`; the task's own if not given."""
    shot_subset: str | None = None
    """As `subset`, for shots."""
    shot_image_name: str | None = None
    """As `image_name`, for shots."""
    hidden_answers: bool = False
    """Whether the files hold no answers: nothing is scored, and a file to hand in is written."""
    submission: SubmissionFormat | None = None
    """How the file to hand in is written; None writes none."""
    interleaved: bool = False
    """Whether questions and options name the places of their images as `<image 1>`."""
    answer_form: AnswerForm = AnswerForm.AS_WRITTEN
    """What the metric gets of an answer; metrics have normalisations of their own beside it."""
    caption_words: CaptionWords = CaptionWords.REGEX
    """How captions become words."""
    judge_prompt: str = ""
    """What a judge is asked; `{question}`, `{reference}`, `{answer}` and `{context}` are filled
    in."""
    chat_prompt: str = ""
    """What a fine-tuned model is told about the image, with `{question}` and `{options}`; empty
    takes that of the metric (LLaVA-1.5's: a single word or phrase, an option's letter, a
    one-sentence caption)."""
    stop: tuple[str, ...] = ("\n",)
    """Strings at which an answer ends; none by default where the metric reads whole answers, for
    fine-tuned models explain before they settle."""
    document_stop: tuple[str, ...] | None = None
    """As `stop`, for a model that continues documents, which goes on with the next question; None
    takes `stop`."""
    max_new_tokens: Count = 30
    """Tokens after which an answer is cut off."""
    shots: tuple[Shots, ...] = (0, 4, 8)
    shot_draw: ShotDraw = ShotDraw.PER_TASK
    """The paper draws shots for each data set and does not say whether anew for each query."""
    num_shot_draws: Annotated[int, bounds(ge=1, le=10_000)] = 1
    """Sets of shots that every item is asked with; the score is the mean over them, and its
    uncertainty holds how far they differ. Our choice: the paper does not say."""
    resolution: MixedResolution | None = None
    """Keeps only the last shots and the query at high resolution."""
    models: tuple[str, ...] = ()
    """Names of the models that are asked, such as `sft`; empty asks all."""
    max_items: Annotated[int, bounds(ge=2, le=MOST)] | None = None
    """Scores only the first items (after a seeded shuffle); None scores all. One item has no
    standard error."""

    def data_part(self) -> TaskConfig:
        """What of the files is read; a subset that shots come from, only where shots are shown."""
        part = only(
            self,
            *("format", "files", "subset", "image_name", "hidden_answers"),
            *("shot_files", "shot_subset", "shot_image_name"),
        )
        if self.shot_files is None and max(self.shots) == 0:
            return with_fields(part, shot_subset=None)
        return part

    def is_asked_of(self, model: str) -> bool:
        """Whether a model of this name is asked."""
        return not self.models or model in self.models

    @model_validator(mode="before")
    @classmethod
    def _with_task_file(cls, given: Any) -> Any:
        named = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not isinstance(named, dict) or (isinstance(given, ArgsKwargs) and given.args):
            return given
        if isinstance(named.get("task"), str):
            named = complete_task(named)
        if "stop" not in named and _reads_whole_answers(named.get("metric")):
            named = {"document_stop": cls.stop, **named, "stop": ()}
        return named

    @property
    def for_documents(self) -> TaskConfig:
        """The task as it is asked of a model that continues documents."""
        if self.document_stop is None:
            return self
        return dataclasses.replace(self, stop=self.document_stop)

    @property
    def question_slots(self) -> int:
        """How often the prompt must name `{question}`."""
        return 0 if self.metric == Metric.CIDER else 1

    def __post_init__(self) -> None:
        _check_data(self)
        _check_prompt(self)
        if not self.shots or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots: found {self.shots}, expected different numbers from 0.")
        if self.num_shot_draws > 1 and self.submission is not None:
            raise ValueError(
                f"num_shot_draws: found {self.num_shot_draws} of a task with a file to hand in; "
                "it holds one answer an item, so ask with 1 set of shots."
            )
        for name, stop in (("stop", self.stop), ("document_stop", self.document_stop or ())):
            if "" in stop:
                raise ValueError(
                    f"{name}: found {stop}, expected no empty string, which would end every answer."
                )


def _reads_whole_answers(metric: Any) -> bool:
    return metric in list(Metric) and Metric(metric).reads_whole_answers


def _check_data(task: TaskConfig) -> None:
    """Exactly one place that items come from, with every file its format has."""
    if (task.source is None) == (task.format is None):
        found = "both" if task.source else "neither"
        raise ValueError(
            f"source: found {found} of `source` and `format`; a task reads either an ingested "
            "source, or the files of an official format."
        )
    if task.format is None:
        return
    has_own_shots = task.shot_files is not None or task.shot_subset is not None
    if task.hidden_answers and max(task.shots) > 0 and not has_own_shots:
        raise ValueError(
            f"shots: found {task.shots} of a task with hidden answers; give shot_files that have "
            "answers to show, or ask for 0 shots."
        )
    if task.hidden_answers and task.submission is None:
        raise ValueError(
            "submission: found none of a task with hidden answers; name the format of the file to "
            f"hand in: {', '.join(SubmissionFormat)}."
        )
    for name, files in (("files", task.files), ("shot_files", task.shot_files)):
        if files is None and name == "shot_files":
            continue
        layout = task.format.layout
        is_hidden = task.hidden_answers and name == "files"
        needed = layout.files - layout.answers if is_hidden else layout.files
        found = set(files or {})
        if missing := sorted(needed - found):
            raise ValueError(
                f"{name}: found {sorted(found)}, but the format {task.format} also needs "
                f"{missing}; give each the path of a file or folder."
            )
        if unknown := sorted(found - layout.files):
            raise ValueError(
                f"{name}: found {unknown}, which the format {task.format} does not have; it has "
                f"{sorted(layout.files)}."
            )


def _check_prompt(task: TaskConfig) -> None:
    num_images = task.prompt.count("{image}")
    if num_images != 1 and not (task.interleaved and num_images == 0):
        raise ValueError(f"prompt: found {task.prompt!r}, expected '{{image}}' exactly once.")
    if task.prompt.count("{question}") != task.question_slots:
        raise ValueError(
            f"prompt: found {task.prompt!r}, expected '{{question}}' {task.question_slots} "
            f"time(s) for the metric {task.metric}."
        )
    if task.chat_prompt and task.chat_prompt.count("{question}") != task.question_slots:
        raise ValueError(
            f"chat_prompt: found {task.chat_prompt!r}, expected '{{question}}' "
            f"{task.question_slots} time(s) for the metric {task.metric}."
        )
    if task.metric.has_letters and task.prompt.count("{options}") != 1:
        raise ValueError(
            f"prompt: found {task.prompt!r}, expected '{{options}}' exactly once for the metric "
            f"{task.metric}."
        )
    if task.metric.needs_judge and "{answer}" not in task.judge_prompt:
        raise ValueError(
            f"judge_prompt: found {task.judge_prompt!r}, expected '{{answer}}' in it: the judge "
            "must see the answer that it marks."
        )


@parameters
class JudgeConfig:
    """A language model that marks answers, behind an OpenAI-compatible address."""

    endpoint: str
    """Address up to `/v1`; requests go to `<endpoint>/chat/completions`."""
    model: str
    """Name that the endpoint knows it by; it stands beside every score it made."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    max_tokens: Count = 256
    """Longest reply, in tokens."""
    timeout_seconds: Seconds = operational(default=120.0)
    max_retries: Tries = operational(default=3)

    def __post_init__(self) -> None:
        if without_secrets(self.endpoint) != self.endpoint:
            raise ValueError(
                f"endpoint: found {without_secrets(self.endpoint)!r}, an address with a key in it, "
                "which would be stored with the parameters; name an environment variable that "
                "holds it as api_key_env."
            )
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"endpoint: found {self.endpoint!r}, expected an address that starts with http:// "
                "or https://."
            )


@parameters
class EvaluateConfig:
    """Parameters of the stage `evaluate`."""

    tasks: Annotated[dict[Name, TaskConfig], NULL_REMOVES]
    text_tasks: Annotated[dict[Name, TextTaskConfig], NULL_REMOVES] = dataclasses.field(
        default_factory=dict
    )
    """Tasks without images, by log-likelihood."""
    judge: JudgeConfig | None = None
    """Marks the answers of tasks whose metric needs a judge."""
    max_validation_items: Number = 512
    """Held-out sequences, and captions, whose loss is measured, a source."""
    bootstrap_samples: Resamples = 2_000
    """Resamples behind every standard error and interval."""
    seed: Seed = 0
    precision: Precision = Precision.FLOAT32
    """Of answers; held-out losses are computed in float32."""
    batch_size: Count = operational(default=32)
    """Prompts generated together."""
    beyond_training: bool = operational(default=False)
    """Asks prompts that are longer than any sequence a model was trained on, instead of refusing
    them before the run."""
    max_positions: Count = operational(default=8_192)
    """Positions of a prompt with its answer above which nothing is run: the key-value cache's
    limit."""
    device: Literal["auto", "cpu", "cuda"] = operational(default="auto")

    def __post_init__(self) -> None:
        if twice := sorted(self.tasks.keys() & self.text_tasks.keys()):
            raise ValueError(f"text_tasks: found {twice}, which are names of `tasks` as well.")
        for name, task in self.tasks.items():
            if task.metric.needs_judge and self.judge is None:
                raise ValueError(
                    f"tasks.{name}.metric: found {task.metric}, which needs a judge, "
                    "expected one in evaluate.judge, which is null; give evaluate.judge.endpoint "
                    "and evaluate.judge.model of an OpenAI-compatible server, or leave the task "
                    "out."
                )

    def vision_part(self) -> EvaluateConfig:
        """What measuring an encoder at its own task depends on."""
        return only(self, "device", "max_validation_items")

    def benchmarks(self, is_wanted: Callable[[str], bool]) -> dict[str, str]:
        """Tasks whose official files are named, each with the parameter that has it.

        Args:
            is_wanted: Whether a task of a name is meant.
        """
        tasks = [name for name, task in self.tasks.items() if task.format is not None]
        texts = [name for name, task in self.text_tasks.items() if task.files is not None]
        named = {name: f"evaluate.tasks.{name}" for name in tasks}
        named |= {name: f"evaluate.text_tasks.{name}" for name in texts}
        return {name: parameter for name, parameter in named.items() if is_wanted(name)}

    def benchmark_part(self) -> EvaluateConfig:
        """Which official files are read, and as what; not what is asked about them."""
        return with_fields(
            only(self),
            tasks={
                name: task.data_part()
                for name, task in self.tasks.items()
                if task.format is not None
            },
            text_tasks={
                name: only(task, "format", "files", "shot_files")
                for name, task in self.text_tasks.items()
            },
        )

    def asked_of(self, *models: str) -> EvaluateConfig:
        """The same with the tasks that ask one of some models.

        Args:
            models: Names of stages; a task that asks only other stages is left out.
        """
        tasks = {
            name: task
            for name, task in self.tasks.items()
            if any(map(task.is_asked_of, models)) or not set(task.models) <= _STAGES
        }
        return dataclasses.replace(self, tasks=tasks)


_STAGES = {"pretrain", "upcycle", "sft"}
"""Models that a task may ask although another pipeline does not score them."""
