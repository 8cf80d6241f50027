"""Text with images to what the model reads."""

# pyright: reportIncompatibleMethodOverride=false
# The signatures are those that transformers documents for such classes, not those it writes.

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, ProcessorMixin


class MM1Processor(ProcessorMixin):
    """Puts an image's placeholders where the text says `<|image|>`, and pixels beside.

    Args:
        image_processor: makes pixel values.
        tokenizer: makes token ids.
        image_tokens: positions that a square of an image takes.
        image_token: what stands for an image in a text.
        chat_template: see transformers.
        **kwargs: what transformers passes to every processor.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012  the name that transformers reads
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    tokenizer: Any
    image_processor: Any

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_tokens: int = 0,
        image_token: str = "<|image|>",  # noqa: S107  no password
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_tokens = image_tokens
        self.image_token = image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images: Any = None, text: Any = None, *, return_tensors: str = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Inputs of the model.

        Training documents begin with BOS, so a text that does not gets one.

        Args:
            images: PIL images in the order of their `<|image|>`, over all texts.
            text: one or several.
            return_tensors: as of the tokenizer.
            **kwargs: to the tokenizer, such as `padding=True`.

        Returns:
            input_ids, attention_mask and, with images, pixel_values.
        """
        texts = [text] if isinstance(text, str) else list(text)
        bos = self.tokenizer.bos_token
        begun = [each if each.startswith(bos) else f"{bos}{each}" for each in texts]
        content: dict[str, Any] = {}
        num_tiles: list[int] = []
        if images is not None:
            processed = self.image_processor(images)
            content["pixel_values"] = processed["pixel_values"]
            num_tiles = processed["num_tiles"].tolist()
        inputs = self.tokenizer(
            self._filled(begun, num_tiles),
            return_tensors=return_tensors,
            add_special_tokens=False,
            **kwargs,
        )
        names = ("input_ids", "attention_mask")
        return BatchFeature({**{n: inputs[n] for n in names if n in inputs}, **content})

    def _filled(self, texts: list[str], num_tiles: list[int]) -> list[str]:
        """The texts with each image's placeholders."""
        found = sum(text.count(self.image_token) for text in texts)
        if found != len(num_tiles):
            raise ValueError(
                f"Found {found} times {self.image_token} in the texts but {len(num_tiles)} images. "
                "Write it once where each image stands."
            )
        counts = iter(num_tiles)
        filled = []
        for text in texts:
            first, *others = text.split(self.image_token)
            placeholders = (self.image_token * self.image_tokens * next(counts) for _ in others)
            parts = (each for pair in zip(placeholders, others, strict=True) for each in pair)
            filled.append(first + "".join(parts))
        return filled
