/* Runs a packed model on one grey image and prints the outputs:  example model.bitsmith */
#include <bitsmith.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s model.bitsmith\n", argv[0]);
        return 2;
    }
    bitsmith_session *session = bitsmith_open(argv[1], 0);
    if (!session) {
        fprintf(stderr, "%s\n", bitsmith_last_error());
        return 1;
    }
    size_t inputs = bitsmith_input_len(session), outputs = bitsmith_output_len(session);
    uint8_t *pixels = malloc(inputs);
    float *x = malloc(inputs * sizeof *x), *y = malloc(outputs * sizeof *y);
    if (!pixels || !x || !y) return 1;
    for (size_t i = 0; i < inputs; i++) pixels[i] = (uint8_t)(i * 7 % 256);
    if (bitsmith_preprocess(session, pixels, x) || bitsmith_run(session, x, 1, y)) {
        fprintf(stderr, "%s\n", bitsmith_last_error());
        return 1;
    }
    for (size_t i = 0; i < outputs; i++) printf("%.9g\n", y[i]);
    free(pixels);
    free(x);
    free(y);
    bitsmith_close(session);
    return 0;
}
