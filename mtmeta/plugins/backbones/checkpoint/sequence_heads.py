"""The heads of transformers' models for sequence classification, by model type of the encoder below them."""

from __future__ import annotations

import mtmeta

SEQUENCE_HEADS = {
    "bert": mtmeta.SequenceHead("BertForSequenceClassification", "tanh", "bert.", "bert.pooler.dense"),
    "distilbert": mtmeta.SequenceHead("DistilBertForSequenceClassification", "relu", "distilbert.", "pre_classifier"),
    "electra": mtmeta.SequenceHead(
        "ElectraForSequenceClassification", "gelu", "electra.", "classifier.dense", "classifier.out_proj"
    ),
    "roberta": mtmeta.SequenceHead(
        "RobertaForSequenceClassification", "tanh", "roberta.", "classifier.dense", "classifier.out_proj"
    ),
    "xlm-roberta": mtmeta.SequenceHead(
        "XLMRobertaForSequenceClassification", "tanh", "roberta.", "classifier.dense", "classifier.out_proj"
    ),
}
