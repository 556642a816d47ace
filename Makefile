# make run                                   build and answer a question with the demo model
# make run MODEL=<folder> PROMPT="..."       the same for any local checkpoint
# make build                                 the program: build/conclave
# make test                                  everything: unit, golden and command-line tests, sanitizers, fuzz smoke run, the openai client
# make test-clients                          clients as they are on PyPI and a browser against `conclave serve` (Python packages go into .venv-clients)
# make test-lm-eval                          lm-evaluation-harness against `conclave serve` and its own backend (installs PyTorch into .venv-clients)
# make bench                                 micro-benchmarks of the kernels
# make comm-bench                            latency of collectives: threads against MPI
MODEL ?= models/demo-mixtral
PROMPT ?=
ARGS ?=
FUZZ_SECONDS ?= 10
CTEST = ctest --output-on-failure --no-tests=error -j2

.PHONY: run build test test-unit test-sanitized test-sanitized-all test-threads test-fuzz test-vectors test-openai test-clients test-lm-eval check bench comm-bench clean

run: build
ifeq ($(value PROMPT),)
	@build/conclave run $(MODEL) --prompt-file $(if $(wildcard $(MODEL)/question.txt),$(MODEL),models/demo-mixtral)/question.txt $(ARGS)
else
	@build/conclave run $(MODEL) --prompt '$(subst ','\'',$(value PROMPT))' $(ARGS)
endif

build:
	@tools/setup/packages.sh build
	@[ -f build/build.ninja ] || cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release
	@cmake --build build --target conclave

test: check test-unit test-sanitized test-fuzz test-vectors test-openai

# Rules of the source tree that a script can see.
check:
	@tools/setup/packages.sh test
	python3 tools/check_includes.py

test-unit:
	@tools/setup/packages.sh test
	cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release -DCONCLAVE_TESTS=ON
	cmake --build build
	cd build && $(CTEST)

# The tests of everything that reads untrusted input, with clang, AddressSanitizer and UndefinedBehaviorSanitizer, and the fuzz targets.
SANITIZED = cmake -G Ninja -S . -B build-sanitized -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
  -DCONCLAVE_TESTS=ON -DCONCLAVE_SANITIZE=ON -DCONCLAVE_FUZZ=ON

test-sanitized:
	@tools/setup/packages.sh test
	$(SANITIZED)
	cmake --build build-sanitized --target parser_tests fuzz_targets
	cd build-sanitized && $(CTEST) -L parsers

# Every test but the slowest under the sanitizers: some 30 minutes.
test-sanitized-all:
	@tools/setup/packages.sh test
	$(SANITIZED)
	cmake --build build-sanitized --target sanitized_tests
	cd build-sanitized && $(CTEST) -L 'parsers|sanitized'

# Everything with threads of its own under ThreadSanitizer.
THREADED = service_test server_test server_units_test client_test
test-threads:
	@tools/setup/packages.sh test
	cmake -G Ninja -S . -B build-threads -DCMAKE_BUILD_TYPE=Release -DCONCLAVE_TESTS=ON -DCONCLAVE_SANITIZE_THREADS=ON
	cmake --build build-threads --target $(THREADED)
	build-threads/tests/engine/service_test
	build-threads/tests/client/client_test
	build-threads/tests/server/server_units_test
	build-threads/tests/server/server_test

test-fuzz: test-sanitized
	python3 tools/run_fuzzers.py build-sanitized/fuzz fuzz/corpus --seconds $(FUZZ_SECONDS)

# Larger sets of tokenizer and template vectors, where a folder of them lies beside the project.
test-vectors: test-unit
	@if [ -f ../shared/tools/check_text.py ]; then python3 ../shared/tools/check_text.py build/conclave ../shared/golden ../shared/tokenizers; \
	else echo "test-vectors: skipped, no folder of additional vectors beside the project"; fi

# Clients as they come from PyPI. A stamp per requirements file: installed again only when it changes. Without PyPI these targets fail.
.venv-clients/%.stamp: tests/clients/%.txt
	@[ -x .venv-clients/bin/python ] || python3 -m venv .venv-clients
	.venv-clients/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

CLIENT = .venv-clients/bin/python tests/clients

# The official openai client: part of `make test`.
test-openai: build .venv-clients/openai.stamp
	$(CLIENT)/openai_client.py build/conclave models/demo-mixtral

# All of them, and the chat page in Chromium, against the program itself.
test-clients: test-openai .venv-clients/others.stamp
	@tools/setup/packages.sh clients
	$(CLIENT)/curl_client.py build/conclave models/demo-mixtral
	$(CLIENT)/hub_client.py build/conclave models/demo-mixtral
	$(CLIENT)/lm_eval_client.py build/conclave tests/data/golden tests/data/clients/lm_eval.json
	$(CLIENT)/schema_client.py build/conclave models/demo-mixtral
	$(CLIENT)/page_test.py build/conclave models/demo-mixtral

# lm-evaluation-harness over `conclave serve` against its own backend; needs PyTorch and transformers, which go into .venv-clients too.
test-lm-eval: build .venv-clients/lm-eval.stamp
	OMP_NUM_THREADS=1 $(CLIENT)/lm_eval_compare.py build/conclave tests/data/golden/mixtral-gqa tests/data/eval

bench:
	@tools/setup/packages.sh bench
	cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release -DCONCLAVE_BENCH=ON
	cmake --build build --target kernel_bench
	build/bench/kernel_bench $(ARGS)

comm-bench:
	@tools/setup/packages.sh bench
	cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release -DCONCLAVE_BENCH=ON
	cmake --build build --target comm_bench
	OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --bind-to none -n 2 build/bench/comm_bench $(ARGS)

clean:
	rm -rf build build-sanitized
