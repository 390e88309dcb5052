"""The report's sections, one file each: from the records to blocks."""
