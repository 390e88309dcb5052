"""The report: templates over the records of an output folder, and what the records prove."""
