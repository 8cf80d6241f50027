"""The answer to an item inside a raw output."""

from __future__ import annotations

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.evaluation.answers.option_parsing import parse_mme, parse_option, parse_pope
from mm1_pipeline.evaluation.answers.postprocess import cut_at_stop, process_output
from mm1_pipeline.evaluation.tasks import TaskItem


def process_answer(text: str, config: TaskConfig, item: TaskItem) -> str:
    """The answer inside a raw output to an item: as `process_output`, or what it names.

    Args:
        text: What the model wrote after the prompt.
        config: Metric and stop strings.
        item: Its options are what the answer may name.

    Returns:
        A letter, empty if none is named, for questions with options; the whole answer for those
        without in such a task; yes, no or other where that is asked; else as `process_output`.
    """
    answer = cut_at_stop(text, config.stop)
    match config.metric:
        case Metric.CHOICE | Metric.CIRCULAR if item.options:
            return parse_option(answer, item.options)
        case Metric.CHOICE | Metric.CIRCULAR:
            return answer.strip()  # Lines are what MMMU's rules go by.
        case Metric.POPE_F1:
            return parse_pope(answer)
        case Metric.MME_SCORE:
            return parse_mme(answer)
    return process_output(text, config.metric, config.stop, config.answer_form)
