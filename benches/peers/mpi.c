/* Collectives of MPI for collective.py: one measurement for each line "op skewed bytes calls" on rank 0's standard
 * input (op 0 all_reduce, 1 all_to_all_v); the answer is the seconds of a call on the slowest rank. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Waits without keeping a core busy, while others measure. */
static void rest(MPI_Request *request) {
    for (int done = 0; !done; MPI_Test(request, &done, MPI_STATUS_IGNORE)) usleep(2000);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(version, &length);
    if (rank == 0) {
        for (int i = 0; i < length; i++)
            if (version[i] == ',' || version[i] == '"' || version[i] < ' ') version[i] = 0;
        printf("{\"mpi\":\"%s\"}\n", version);
        fflush(stdout);
    }
    float *values = NULL;
    char *sent = NULL, *received = NULL;
    int *counts = calloc(4 * ranks, sizeof(int)), *starts = counts + ranks, *own = starts + ranks, *places = own + ranks;
    long order[5], kept[2] = {0, 0};
    for (;;) {
        if (rank == 0) order[4] = scanf("%ld %ld %ld %ld", &order[0], &order[1], &order[2], &order[3]) == 4;
        MPI_Request request;
        MPI_Ibcast(order, 5, MPI_LONG, 0, MPI_COMM_WORLD, &request);
        rest(&request);
        if (!order[4]) break;
        long bytes = order[2], number = (bytes + 3) / 4;
        if (order[0] == 0) {
            if (kept[0] != number) values = realloc(values, 4 * number), kept[0] = number;
            for (long i = 0; i < number; i++) values[i] = 1;
        } else {
            long first = order[1] ? bytes * 7 / 10 : bytes / ranks, begin = 0;
            for (int to = 0; to < ranks; to++) {
                long end = first + (bytes - first) * to / (ranks > 1 ? ranks - 1 : 1);
                starts[to] = begin, counts[to] = end - begin, begin = end;
            }
            for (int from = 0; from < ranks; from++) own[from] = counts[rank], places[from] = from * counts[rank];
            if (kept[1] != bytes) {
                free(sent);
                sent = calloc(bytes, 1), kept[1] = bytes;
            }
            received = realloc(received, (size_t)counts[rank] * ranks + 1);
        }
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = MPI_Wtime();
        for (long call = 0; call < order[3]; call++) {
            if (order[0] == 0)
                MPI_Allreduce(MPI_IN_PLACE, values, number, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            else
                MPI_Alltoallv(sent, counts, starts, MPI_BYTE, received, own, places, MPI_BYTE, MPI_COMM_WORLD);
        }
        double seconds = (MPI_Wtime() - begun) / order[3], slowest;
        MPI_Reduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
        if (rank == 0) {
            printf("{\"seconds\":%.9g}\n", slowest);
            fflush(stdout);
        }
    }
    MPI_Finalize();
    return 0;
}
