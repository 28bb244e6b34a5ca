"""What everything else may use: errors and their codes, files, plain data, plugins, names, signals, talk."""
