"""From files, folders, archives and PACS to items of a cache, with a report of everything that was found."""
