"""The JSON of every route, as pydantic models: what the server accepts, answers and documents (OpenAPI)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import pydantic
from pydantic import Field

from clipette.config import StrictModel

Key: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
Words: TypeAlias = Annotated[str, Field(max_length=10_000)]
Kind: TypeAlias = Literal["image", "text"]
Score: TypeAlias = Annotated[float, Field(ge=-1.0, le=1.0)]
# A cell of a row's metadata: what filters can compare.
Cell: TypeAlias = "str | int | float | bool | None"
Meta: TypeAlias = "dict[str, Cell]"
# A new column's name: it stays with the collection, and people write it in filters.
Column: TypeAlias = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
# Encoded bytes of an image in base64, or a whole data: URI. No address is ever fetched.
ImageText: TypeAlias = Annotated[
    str,
    Field(min_length=1, description="Base64 of an encoded image (JPEG, PNG, WebP, ...), or a data: URI of one."),
]


class Weights(StrictModel):
    """How much each part of a mixed query counts; ``image`` is also the weight of ``image_key``."""

    text: float = Field(default=1.0, ge=0, le=100)
    image: float = Field(default=1.0, ge=0, le=100)
    negative: float = Field(default=1.0, ge=0, le=100)


class SearchRequest(StrictModel):
    """One query. At least one of ``text``, ``image``, ``image_key`` and ``liked`` is needed.

    ``text`` may hold negative terms (``beach -people``). A multipart form has the same fields as text (lists and
    ``weights`` as JSON) and the picture as the file ``image``.
    """

    text: Words | None = Field(None, description="What to look for; `-word` means without it.", examples=["a dog"])
    image: ImageText | None = None
    image_key: Key | None = Field(None, description="An image of the collection as the query: more like this.")
    negatives: list[Words] = Field([], max_length=16, description="Texts that results shall not resemble.")
    weights: Weights = Weights()
    k: int = Field(20, ge=1, le=1000, description="Hits wanted; /v1/info says the most.")
    where: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="A filter on the collection's columns.", examples=["domain = 'photo' AND year > 2019"]
    )
    kind: Literal["image", "text", "any"] = "image"
    mmr: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Diversity: 1 ranks by relevance alone, 0 by difference alone."
    )
    group: bool = Field(False, description="Fold near-duplicates into one hit.")
    threshold: Literal["auto"] | Score | None = Field(
        "auto", description="Say where nothing fits: `auto` as calibrated on the collection, or a cosine; null: never."
    )
    liked: list[Key] = Field([], max_length=100, description="Hits marked as right: they refine the query (Rocchio).")
    disliked: list[Key] = Field([], max_length=100)
    stream: bool = Field(False, description="Newline-delimited JSON: first hits at once, refined ones after.")

    @pydantic.model_validator(mode="after")
    def _something_asked(self) -> SearchRequest:
        if not (self.text or self.image or self.image_key or self.liked):
            raise ValueError("an empty query: give at least one of text, image, image_key, liked")
        return self


class SearchHit(StrictModel):
    """One result. ``image`` and ``thumbnail`` are paths on this server, absent for texts."""

    rank: int = Field(ge=1)
    key: str
    score: float = Field(description="Cosine of the (mixed) query with the item.")
    confidence: float | None = Field(
        None,
        description="Where the collection is calibrated: the share of queries without an answer that score lower.",
    )
    fits: bool | None = Field(None, description="Whether the score reaches the threshold, where there is one.")
    kind: Kind
    text: str | None = Field(None, description="The text itself, or an image's caption.")
    meta: Meta = Field({})
    duplicates: list[str] = Field([], description="Keys of near-duplicates folded into this hit.")
    image: str | None = None
    thumbnail: str | None = None


class SearchResponse(StrictModel):
    """The hits, best first. Streamed, one such object a line: the last has ``final: true`` and replaces those before.

    ``below_threshold``: nothing in the collection fits; the hits are the nearest there are.
    """

    hits: list[SearchHit]
    below_threshold: bool = False
    threshold: float | None = Field(None, description="The cosine that was compared with, if any.")
    calibrated: bool = False
    stage: Literal["first", "refined"] = "refined"
    final: bool = True
    generation: int = Field(description="Of the collection: grows with every write.")
    cached: bool = False
    took_ms: float


class ClassifyRequest(StrictModel):
    """One picture and the labels to choose from. In a multipart form: the file ``image``, ``labels`` as JSON."""

    image: ImageText | None = None
    image_key: Key | None = Field(None, description="An image of the collection in place of an upload.")
    labels: list[Annotated[str, Field(min_length=1, max_length=500)]] = Field(
        min_length=2, max_length=1000, examples=[["a dog", "a cat"]]
    )
    templates: str = Field("auto", max_length=500, description="single, openai80, ..., or one with {} in it.")

    @pydantic.model_validator(mode="after")
    def _one_picture(self) -> ClassifyRequest:
        if (self.image is None) == (self.image_key is None):
            raise ValueError("give either image or image_key")
        return self


class LabelScore(StrictModel):
    """``probability``: softmax over the labels of scale · cosine + bias."""

    label: str
    probability: float
    cosine: float


class ClassifyResponse(StrictModel):
    """Labels best first."""

    model: str
    best: str
    scores: list[LabelScore]
    templates: str
    took_ms: float


class EmbeddingsRequest(StrictModel):
    """OpenAI's embeddings request with infinity's ``modality``.

    ``model``, ``user`` and ``dimensions`` are accepted for clients that send them; ``dimensions`` must be the model's.
    """

    input: str | list[str] = Field(description="Texts; or images as data: URIs (bare base64 too).", examples=["a dog"])
    modality: Literal["text", "image"] = "text"
    model: str | None = Field(None, max_length=500)
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian float32, as OpenAI's clients ask for."
    )
    dimensions: int | None = Field(None, ge=1)
    user: str | None = Field(None, max_length=500)


class Embedding(StrictModel):
    """One unit vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(StrictModel):
    """Characters of the texts, or pictures: the server does not bill, and counts no tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(StrictModel):
    """Vectors in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Item(StrictModel):
    """One row of the collection."""

    key: str
    kind: Kind
    text: str | None = None
    meta: Meta = Field({})
    image: str | None = None
    thumbnail: str | None = None


class NewItem(StrictModel):
    """An image or a text to add, in place of one of its kind with its key.

    Without ``key``, a digest of the content is the key.
    """

    key: Key | None = None
    image: ImageText | None = None
    text: Words | None = None
    meta: Annotated[dict[Column, Cell], Field(max_length=64)] = Field({})

    @pydantic.model_validator(mode="after")
    def _image_or_text(self) -> NewItem:
        if self.image is None and not self.text:
            raise ValueError("an item needs an image or a text")
        if self.key in (".", ".."):
            raise ValueError(f"the key {self.key!r} cannot be part of an address: browsers take it as a folder")
        return self


class AddRequest(StrictModel):
    """Items to add in one write. In a multipart form: files ``image`` (key: the file's name without its ending)."""

    items: list[NewItem] = Field(min_length=1, max_length=1000)


class AddResponse(StrictModel):
    """The write is on disk when this is answered."""

    keys: list[str] = Field(description="In the order of the items.")
    generation: int


class DeleteResponse(StrictModel):
    """``missing``: keys that were not there."""

    deleted: int
    missing: list[str] = Field([])
    generation: int


class Click(StrictModel):
    """What a user did with a hit of a query: written to a local file for evaluation, never sent anywhere.

    ``text``, ``image_key`` and ``negatives`` are the query's; ``image``: whether it had a picture, which is not kept.
    """

    key: Key
    rank: int = Field(ge=1, le=100_000)
    text: Words | None = None
    image_key: Key | None = None
    image: bool = False
    negatives: list[Words] = Field([], max_length=16)
    action: Literal["open", "more_like_this", "like", "dislike"] = "open"
    shown: list[Key] = Field([], max_length=1000, description="Keys of the list that the hit was in, best first.")


class ClickResponse(StrictModel):
    """``logged`` is false where the server keeps no click log."""

    logged: bool


class ModelInfo(StrictModel):
    """The encoder at work."""

    name: str
    space: str
    dim: int
    logit_scale: float
    logit_bias: float
    can_encode_text: bool
    can_encode_images: bool
    card: str = Field("", description="The model card, Markdown.")


class IndexInfo(StrictModel):
    """The collection being searched."""

    name: str
    items: int
    generation: int
    columns: dict[str, str] = Field({}, description="Columns that filters can name, and their types.")
    values: dict[str, list[str]] = Field({}, description="All values of text columns that have few (50 at most).")
    model: str | None = Field(None, description="The model that built it: another one of the same space may search it.")
    mixed_space: bool = Field(False, description="Whether another encoder of the same space made the index.")
    recall: dict[str, float] | None = Field(None, description="Measured recall@10 against exact search.")
    calibrated: bool = False
    details: dict[str, object] = Field({})


class Limits(StrictModel):
    """What the server accepts."""

    max_k: int
    max_labels: int
    max_inputs: int
    max_items: int
    max_image_bytes: int
    max_image_pixels: int
    max_body_bytes: int
    timeout_seconds: float


class Features(StrictModel):
    """What a page can offer here. ``read_key``/``write_key``: whether that kind of request needs a bearer key."""

    read_key: bool
    write_key: bool
    writable: bool
    clicks: bool
    thumbnails: bool


class InfoResponse(StrictModel):
    """What is served, and how well."""

    version: str
    model: ModelInfo
    index: IndexInfo
    limits: Limits
    features: Features


class Health(StrictModel):
    """``status``: ok, or why not ready."""

    status: str


class Fault(StrictModel):
    """``type``: a stable word to switch on; ``param``: the field at fault, where one is."""

    message: str
    type: str
    param: str | None = None


class ErrorResponse(StrictModel):
    """Every error of the API."""

    error: Fault
