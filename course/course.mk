# The exercises (course/exercises/README.md), and the tests of the course for `make test-full`.
## make exercise-01   to 10: checks a function of hmoe.h that you write; FILE=my.c
## make grade         checks the files of a class: DIR=submissions, see course/exercises/TEACHING.md
FILE =
DIR = submissions
EXERCISE = command -v python3 >/dev/null || { echo 'make $@: needs Python 3' >&2; exit 1; }; \
	CC='$(CC)' python3 course/exercises/exercise.py

exercise-%: always
	@$(EXERCISE) check '$*' '$(FILE)'

grade:
	@$(EXERCISE) grade '$(DIR)'

FULL_TESTS += course/test_exercises.py course/test_tour.py

.PHONY: grade
