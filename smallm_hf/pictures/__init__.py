"""Pictures of a model: where its words lie, what its heads look at, what it expects of a text."""
