"""Predictions in Spark: the scorer of a checkpoint as the function of `mapInArrow`.

    spark-submit examples/spark_predict.py CHECKPOINT POSTS_PARQUET OUTPUT_FOLDER

The posts have the columns `post_id` and `text`. A task makes its scorer once, for all posts of a
partition; the checkpoint must be on a disk that all executors see, and the package installed there.
Spark does what units and shards do elsewhere: it divides the posts, and starts again what fails.
"""

import sys
from collections.abc import Callable, Iterator

import pyarrow as pa

from psy_agents_noaug.run.scoring import Scorer

# Spark runs as many tasks on a machine as there are cores, so each computes on one.
SETTINGS = {"training.num_threads": 1}


def predictions_of(
    checkpoint: str,
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for `mapInArrow`: from batches of posts to batches of predictions."""

    def predict(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = Scorer(checkpoint, overrides=SETTINGS)
        for batch in batches:
            yield from scorer(pa.Table.from_batches([batch])).to_batches()

    return predict


def main(checkpoint: str, posts: str, output: str) -> None:
    """Predict the posts of Parquet files, and write the predictions as Parquet files."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.appName("psy-agents")
        # Posts of a batch: the memory of a task does not grow with its partition.
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "1000")
        .getOrCreate()
    )
    no_predictions = Scorer(checkpoint, overrides=SETTINGS).schema.empty_table()
    frame = spark.read.parquet(posts).select("post_id", "text")
    predicted = frame.mapInArrow(
        predictions_of(checkpoint), spark.createDataFrame(no_predictions).schema
    )
    predicted.write.parquet(output)
    written = spark.read.parquet(output).count()
    sys.stdout.write(f"{frame.count():,} posts, {written:,} predictions in {output}\n")
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
