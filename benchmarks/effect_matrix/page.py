def write_page(results, tables, path):
    pass
