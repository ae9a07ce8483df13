"""What a run will cost, from its compiled step and no accelerator: topology -> compile -> read the program -> report."""
