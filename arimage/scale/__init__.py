"""Many pictures: jobs from a table, stages one after another or on machines of their own, shards and a manifest."""
