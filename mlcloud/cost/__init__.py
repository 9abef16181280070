"""What things cost: prices, the ledger of facts, the meter, and what a cell shows of it."""
