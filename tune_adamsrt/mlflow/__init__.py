"""A search in MLflow's terms, and the thread that sends it there. `tune_adamsrt.tracking` is the door."""
