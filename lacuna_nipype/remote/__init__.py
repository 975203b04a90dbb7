"""Files and answers from servers: keys, careful requests, downloads that can be resumed."""
