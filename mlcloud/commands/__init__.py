"""Commands of `mlcloud …` that are many or long, each topic in a module: `cli` adds them."""
