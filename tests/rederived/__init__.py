"""Every number in the documents, derived again from the tracked records without the code of the reports."""
