"""Raw sources to clean records: readers, images, filters, de-duplication, quarantine."""
