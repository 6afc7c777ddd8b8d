"""`python -m nipmesh_home MODULE …` runs one of nipmesh's own modules, e.g. a service, from any folder."""

from nipmesh_home import run

if __name__ == "__main__":
    run()
